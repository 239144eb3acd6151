"""HR, NDCG and MRR by full ranking.

The protocol is RecBole's (all items but padding are ranked) except for ties, which count against the model:
an item with the same score as the target ranks before it. One pass ranks twice for each target, all items and
with the seen items removed, because papers report both. With seen items removed, a target that the user has
seen is never recommended, so it is a miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recgrela.evaluation.lists import ListFigures
from recgrela.parallel.score_blocks import TargetRanks
from recgrela.settings.train import CUTOFFS, metric_names
from recgrela.system.errors import RunError

MISSED = torch.iinfo(torch.int32).max  # the rank of a removed target, worse than any cut-off
_BLOCK = 1 << 20  # targets whose metrics are in memory at a time


@dataclass(frozen=True)
class Ranking:
    """Metrics of one split, as means over its targets.

    Attributes:
        users: number of users.
        targets: number of targets.
        values: metrics "HR@5" ... "MRR@10" with all items ranked.
        masked: the same with the seen items removed; a seen target is a miss.
        new_targets: number of targets that are new to their user.
        new_values, new_masked: `values` and `masked` over the new targets alone; None without any.
        ties, masked_ties: number of targets whose metrics would be higher if ties favored the model.
        lists: figures of the recommended items; None if they were not asked for.
        rows: [targets] int64; the user row of each target, successive targets of a user next to each other.
        ranks: [2, targets] int32, on the CPU; each target's rank from 1, with all items ranked and with the
            seen items removed, where a seen target has the rank `MISSED`.
        items: [targets] int32, on the CPU; the target items.
    """

    users: int
    targets: int
    values: dict[str, float]
    masked: dict[str, float]
    new_targets: int
    new_values: dict[str, float] | None
    new_masked: dict[str, float] | None
    ties: int
    masked_ties: int
    lists: ListFigures | None
    rows: np.ndarray = field(compare=False, repr=False)
    ranks: Tensor = field(compare=False, repr=False)
    items: Tensor = field(compare=False, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the ranks."""
        return {
            "users": self.users,
            "targets": self.targets,
            "unmasked": self.values,
            "masked": self.masked,
            "new": {"targets": self.new_targets, "unmasked": self.new_values, "masked": self.new_masked},
            "ties_at_cut": {"unmasked": self.ties, "masked": self.masked_ties},
            **({} if self.lists is None else {"lists": self.lists.as_dict()}),
        }


class RankingCounts:
    """Counts ties and NaN scores of batches on their device; only `read` synchronizes.

    All batches add to the same tensors, so that a CUDA graph can.

    Args:
        device: the device of the ranks.
        cutoffs: the cut-offs; ties are counted up to the largest.
    """

    def __init__(self, device: torch.device, cutoffs: Sequence[int] = CUTOFFS) -> None:
        self._ties = torch.zeros(2, dtype=torch.int64, device=device)
        self._nan_targets = torch.zeros((), dtype=torch.int64, device=device)
        self._last = max(cutoffs)

    def reset(self) -> None:
        """Begins another split."""
        for total in (self._ties, self._nan_targets):
            total.zero_()

    def add(self, found: TargetRanks, is_seen: Tensor) -> Tensor:
        """Add the ranks of one batch.

        Args:
            found: the ranks, with all items ranked, and with seen items removed.
            is_seen: [B] bool, whether a target is in the user's history.

        Returns:
            ranks [2, B] int32; see `Ranking`.
        """
        rank, missed = found.rank, torch.stack([torch.zeros_like(is_seen), is_seen])
        # Ties matter if the best rank that they allow is within the largest cutoff.
        self._ties += ((found.ties > 0) & (rank - found.ties <= self._last) & ~missed).sum(1)
        self._nan_targets += found.has_nan.sum()
        return torch.where(missed, MISSED, rank).int()

    def read(self) -> Tensor:
        """[3] int64 on the CPU: targets with ties, the same with seen items removed, and with NaN scores."""
        return torch.cat([self._ties, self._nan_targets[None]]).cpu()


def summarize(
    ranks: Tensor,
    items: Tensor,
    rows: np.ndarray,
    counts: Tensor,
    cutoffs: Sequence[int] = CUTOFFS,
    lists: ListFigures | None = None,
) -> Ranking:
    """The metrics of a split. They do not depend on how its targets were divided into batches.

    Args:
        ranks: [2, targets] int32 on the CPU, the results of `RankingCounts.add` in the order of the targets.
        items: [targets] int32 on the CPU, the target items.
        rows: [targets] int64, the user row of each target.
        counts: [3] int64, the result of `RankingCounts.read`.
        cutoffs: the cut-offs.
        lists: figures of the recommended items, if any.

    Raises:
        RunError: there are no targets, or some scores are NaN (comparisons with NaN are false, so the ranks
            would look perfect).
    """
    targets = ranks.shape[1]
    if targets == 0:
        raise RunError("no targets to evaluate")
    ties, masked_ties, nan_targets = counts.tolist()
    if nan_targets:
        raise RunError(
            f"the model gives NaN scores for {nan_targets} of {targets} targets; training diverged"
        )
    new = ranks[:, ranks[1] < MISSED]
    unmasked, masked = _means(ranks, cutoffs)
    new_means = _means(new, cutoffs) if new.shape[1] else (None, None)
    return Ranking(
        users=np.unique(rows).size,
        targets=targets,
        values=unmasked,
        masked=masked,
        new_targets=new.shape[1],
        new_values=new_means[0],
        new_masked=new_means[1],
        ties=ties,
        masked_ties=masked_ties,
        lists=lists,
        rows=rows,
        ranks=ranks,
        items=items,
    )


def metrics_of(rank: Tensor, cutoffs: Sequence[int] = CUTOFFS) -> Tensor:
    """Metrics of ranks: [B] from 1 -> [B, metrics] float64, in the order of `metric_names`."""
    position = rank.double()
    columns = []
    for k in cutoffs:
        hit = (rank <= k).double()
        columns += [hit, hit / torch.log2(position + 1), hit / position]
    return torch.stack(columns, 1)


def seen_targets(seen: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    """Whether each target [B] is among the seen items of its row, [B] bool.

    Args:
        seen: rows [S] int64 and items [S] int64; see `EvalBatches.seen`.
        target: [B] int64.
    """
    rows, items = seen
    found = torch.zeros(len(target), dtype=torch.int32, device=target.device)
    return found.index_add_(0, rows, (items == target[rows]).int()) > 0


def _means(ranks: Tensor, cutoffs: Sequence[int]) -> tuple[dict[str, float], dict[str, float]]:
    """The mean metrics of each row of ranks [2, n] by name."""
    parts = ranks.split(_BLOCK, 1)
    sums = torch.stack([torch.stack([metrics_of(row, cutoffs).sum(0) for row in part]) for part in parts])
    unmasked, masked = (sums.sum(0) / ranks.shape[1]).tolist()
    names = metric_names(cutoffs)
    return dict(zip(names, unmasked, strict=True)), dict(zip(names, masked, strict=True))
