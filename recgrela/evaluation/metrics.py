"""HR, NDCG and MRR by full ranking, with one target item per user.

The protocol is RecBole's (all items but padding are ranked) except for ties, which count against the model:
an item with the same score as the target ranks before it. One pass ranks twice for each user, all items and
with the seen items removed, because papers report both.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from recgrela.system.errors import RunError

CUTOFFS = (5, 10)
METRICS = ("HR", "NDCG", "MRR")
_BLOCK = 1 << 20  # users whose metrics are in memory at a time
NAMES = tuple(f"{metric}@{k}" for k in CUTOFFS for metric in METRICS)


@dataclass(frozen=True)
class Ranking:
    """Metrics of one split, as means over its users.

    Attributes:
        users: number of users.
        values: metrics "HR@5" ... "MRR@10" with all items ranked.
        masked: the same with the seen items removed.
        ties, masked_ties: number of users whose metrics would be higher if ties favored the model.
        ranks: [2, users] int32, on the CPU; each user's rank from 1, with all items ranked and with the seen
            items removed.
    """

    users: int
    values: dict[str, float]
    masked: dict[str, float]
    ties: int
    masked_ties: int
    ranks: Tensor = field(compare=False, repr=False)

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON, without the ranks."""
        return {
            "users": self.users,
            "unmasked": self.values,
            "masked": self.masked,
            "ties_at_cut": {"unmasked": self.ties, "masked": self.masked_ties},
        }


def target_ranks(scores: Tensor, target: Tensor, removed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The rank, from 1, of each row's target, and the number of other items with its score.

    Args:
        scores: [B, n_items]; column 0 is padding and is not ranked.
        target: [B] int64, in 1..n_items-1.
        removed: [B, n_items] bool, items that are not ranked (the target's entry is ignored), or None.

    Returns:
        rank [B] int64, 1 + items with higher scores + other items with an equal score; ties [B] int64, the
        number of other items with an equal score.
    """
    own = scores.gather(1, target[:, None])
    higher = scores > own
    equal = scores == own
    if removed is not None:
        higher &= ~removed
        equal &= ~removed
    for compared in (higher, equal):
        compared[:, 0] = False
    equal.scatter_(1, target[:, None], False)
    ties = equal.sum(1)
    return 1 + higher.sum(1) + ties, ties


class RankingCounts:
    """Ranks batches, and counts ties and NaN scores on their device; only `result` synchronizes.

    All batches add to the same tensors, so that a CUDA graph can.
    """

    def __init__(self, device: torch.device) -> None:
        self._ties = torch.zeros(2, dtype=torch.int64, device=device)
        self._nan_users = torch.zeros((), dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Begins another split."""
        for total in (self._ties, self._nan_users):
            total.zero_()

    def add(self, scores: Tensor, target: Tensor, removed: Tensor) -> Tensor:
        """Rank one batch.

        Args:
            scores: [B, n_items] of any floating type.
            target: [B] int64.
            removed: [B, n_items] bool, the items to remove in the masked ranking. The target is never removed
                (a user may interact with an item again).

        Returns:
            ranks [2, B] int32; see `Ranking`.
        """
        ranks, ties = zip(*(target_ranks(scores, target, mask) for mask in (None, removed)), strict=True)
        return self.add_ranks(torch.stack(ranks), torch.stack(ties), scores[:, 1:].isnan().any(1))

    def add_ranks(self, ranks: Tensor, ties: Tensor, has_nan: Tensor) -> Tensor:
        """Add the ranks of one batch.

        Args:
            ranks, ties: [2, B] int64, see `target_ranks`: with all items ranked, and without removed ones.
            has_nan: [B] bool, whether a score of a ranked item is NaN.

        Returns:
            ranks [2, B] int32; see `Ranking`.
        """
        for variant, (rank, tied) in enumerate(zip(ranks, ties, strict=True)):
            # Ties matter if the best rank that they allow is within the largest cutoff.
            self._ties[variant].add_(((tied > 0) & (rank - tied <= max(CUTOFFS))).sum())
        self._nan_users += has_nan.sum()
        return ranks.int()

    def read(self) -> Tensor:
        """[3] int64 on the CPU: users with ties, the same with seen items removed, users with NaN scores."""
        return torch.cat([self._ties, self._nan_users[None]]).cpu()


def summarize(ranks: Tensor, counts: Tensor) -> Ranking:
    """The metrics of a split. They do not depend on how its users were divided into batches.

    Args:
        ranks: [2, users] int32 on the CPU, the results of `RankingCounts.add` in the order of the users.
        counts: [3] int64, the result of `RankingCounts.read`.

    Raises:
        RunError: there are no users, or some scores are NaN (comparisons with NaN are false, so the ranks
            would look perfect).
    """
    users = ranks.shape[1]
    if users == 0:
        raise RunError("no users to evaluate")
    ties, masked_ties, nan_users = counts.tolist()
    if nan_users:
        raise RunError(f"the model gives NaN scores for {nan_users} of {users} users; training diverged")
    blocks = [torch.stack([metrics_of(row).sum(0) for row in block]) for block in ranks.split(_BLOCK, 1)]
    sums = torch.stack(blocks).sum(0)
    unmasked, masked = (sums / users).tolist()
    return Ranking(
        users=users,
        values=dict(zip(NAMES, unmasked, strict=True)),
        masked=dict(zip(NAMES, masked, strict=True)),
        ties=ties,
        masked_ties=masked_ties,
        ranks=ranks,
    )


def metrics_of(rank: Tensor) -> Tensor:
    """Metrics of ranks: [B] from 1 -> [B, len(NAMES)] float64, in the order of NAMES."""
    position = rank.double()
    columns = []
    for k in CUTOFFS:
        hit = (rank <= k).double()
        columns += [hit, hit / torch.log2(position + 1), hit / position]
    return torch.stack(columns, 1)
