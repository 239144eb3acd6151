"""Training losses: full softmax, and for very large catalogues losses on sampled negatives."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recgrela.data import Interactions
from recgrela.ops.checks import without_autocast
from recgrela.ops.linear_cross_entropy import max_logits_of
from recgrela.parallel.table import Table, biases_of, cross_entropy, rows_of
from recgrela.settings.train import LossName
from recgrela.system.errors import ConfigError


class FullSoftmax(nn.Module):
    """Cross-entropy over every row of the item table; see `linear_cross_entropy`."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, hidden: Tensor, table: Table, target: Tensor, bias: Tensor | None = None) -> Tensor:
        """hidden [T, D], item table [n_items, D], target [T] int64, item bias [n_items] -> the mean loss."""
        return cross_entropy(hidden, table, target, bias, label_smoothing=self.label_smoothing)


class SampledLoss(nn.Module, ABC):
    """A loss on each row's target and on negatives that all rows of a pass share.

    Half of the negatives are items of random training events, which favours frequent items; the others are
    uniform, so that every item is drawn. A negative equal to a row's target is ignored for that row. Scores
    are held for a bounded number of rows, as in `linear_cross_entropy`, and recomputed in the backward pass.

    Args:
        counts: [n_items] int64, the number of training events of each item; the padding row has none and is
            never drawn.
        num_negatives: number of negatives per pass, drawn with replacement.
    """

    ends: Tensor

    def __init__(self, counts: Tensor, num_negatives: int) -> None:
        super().__init__()
        self.n_items, self.num_negatives, self.num_events = len(counts), num_negatives, int(counts.sum())
        # The item of training event e, sorted by item, is the first whose events end after e.
        self.register_buffer("ends", counts.cumsum(0), persistent=False)

    def draw(self) -> Tensor:
        """[num_negatives] int64 item ids, from the device's random number generator."""
        device, frequent = self.ends.device, self.num_negatives // 2
        events = torch.randint(self.num_events, (frequent,), device=device)
        uniform = torch.randint(1, self.n_items, (self.num_negatives - frequent,), device=device)
        return torch.cat([torch.searchsorted(self.ends, events, right=True), uniform])

    def forward(self, hidden: Tensor, table: Table, target: Tensor, bias: Tensor | None = None) -> Tensor:
        """hidden [T, D], item table [n_items, D], target [T] int64, item bias [n_items] -> the mean loss."""
        return self.with_negatives(hidden, table, target, self.draw(), bias)

    def with_negatives(
        self, hidden: Tensor, table: Table, target: Tensor, negatives: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """The mean loss with given negatives, [K] int64."""
        rows = max(1, max_logits_of(hidden.device.type) // len(negatives))
        # A single lookup, because each one creates a gradient as large as the table.
        ids, counts = torch.cat([target, negatives]), [len(target), len(negatives)]
        own, others = rows_of(table, ids).split(counts)
        parts = [hidden.split(rows), target.split(rows), own.split(rows)]
        other_bias = None
        if bias is not None:
            own_bias, other_bias = biases_of(table, bias, ids).float().split(counts)
            parts.append(own_bias.split(rows))
        losses = [
            # No random state is needed, and a CUDA graph could not save it.
            checkpoint(
                self._sum,
                others,
                other_bias,
                negatives,
                *part,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for part in zip(*parts, strict=True)
        ]
        return torch.stack(losses).sum() / max(1, len(target))

    def _sum(
        self,
        others: Tensor,
        other_bias: Tensor | None,
        negatives: Tensor,
        hidden: Tensor,
        target: Tensor,
        own: Tensor,
        own_bias: Tensor | None = None,
    ) -> Tensor:
        # Autocast is disabled, because bfloat16 is too coarse for scores.
        with without_autocast(hidden.device.type):
            hidden = hidden.float()
            positive, negative = (hidden * own.float()).sum(1), hidden @ others.float().T
            if own_bias is not None and other_bias is not None:
                positive, negative = positive + own_bias, negative + other_bias
            return self.loss(positive, negative, target, negatives).sum()

    @abstractmethod
    def loss(self, positive: Tensor, negative: Tensor, target: Tensor, negatives: Tensor) -> Tensor:
        """Scores of targets [T] and of negatives [T, K] -> the loss of each row [T]."""


class SampledSoftmax(SampledLoss):
    """Softmax over the target and the negatives, with negatives divided by their expected number of draws.

    The sum over negatives then estimates the sum over all items except the target. The target is always
    present and needs no correction. Source: Bengio and Senecal (2008). Yi et al. (RecSys 2019) also correct
    the target; Khrylchenko et al., Correcting the LogQ correction (RecSys 2025), explain why not to.
    """

    log_q: Tensor

    def __init__(self, counts: Tensor, num_negatives: int) -> None:
        super().__init__(counts, num_negatives)
        frequent = num_negatives // 2
        share = counts.float() / self.num_events
        expected = frequent * share + (num_negatives - frequent) / (self.n_items - 1)
        self.register_buffer("log_q", expected.log(), persistent=False)

    def loss(self, positive: Tensor, negative: Tensor, target: Tensor, negatives: Tensor) -> Tensor:
        negative = negative - self.log_q[negatives]
        negative = negative.masked_fill(negatives == target[:, None], -math.inf)
        return torch.logaddexp(positive, negative.logsumexp(1)) - positive


class GBCE(SampledLoss):
    """Binary cross-entropy with the positive probability raised to the power beta, against overconfidence.

    beta = alpha (t (1 - 1/alpha) + 1/alpha) with alpha = K / (n_items - 1); t = 0 is plain binary
    cross-entropy, t = 1 fully calibrated. Source: Petrov and Macdonald, gSASRec (RecSys 2023), which draws
    separate negatives for each row.
    """

    def __init__(self, counts: Tensor, num_negatives: int, t: float) -> None:
        super().__init__(counts, num_negatives)
        n_items = self.n_items
        if num_negatives >= n_items:
            raise ConfigError(
                f"train.negatives: {num_negatives} is more than the {n_items - 1} items that gbce draws "
                "from; use train.loss softmax, which needs no sampling"
            )
        alpha = num_negatives / (n_items - 1)
        self.beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)

    def draw(self) -> Tensor:
        # Uniform, as the formula of beta assumes.
        return torch.randint(1, self.n_items, (self.num_negatives,), device=self.ends.device)

    def loss(self, positive: Tensor, negative: Tensor, target: Tensor, negatives: Tensor) -> Tensor:
        others = F.softplus(negative).masked_fill(negatives == target[:, None], 0.0)
        return (self.beta * F.softplus(-positive) + others.sum(1)) / (1 + len(negatives))


def make_loss(
    name: LossName, label_smoothing: float, negatives: int, gbce_t: float, data: Interactions
) -> nn.Module:
    """The loss with a given name, on the device of the data; see the classes for other arguments."""
    if name == "softmax":
        return FullSoftmax(label_smoothing)
    counts = data.train_item_counts()
    if name == "sampled_softmax":
        return SampledSoftmax(counts, negatives)
    return GBCE(counts, negatives, gbce_t)
