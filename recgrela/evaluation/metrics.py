"""HR, NDCG and MRR by full ranking, for one positive item per user.

The protocol is RecBole's (every item is ranked, only the padding column is left out) but for ties, which
count against the model: an item with the same score as the target ranks before it. Each user is ranked twice
in one pass, among all items and with the seen items removed: readers compare with papers of both kinds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from recgrela.system.errors import RunError

CUTOFFS = (5, 10)
METRICS = ("HR", "NDCG", "MRR")
NAMES = tuple(f"{metric}@{k}" for k in CUTOFFS for metric in METRICS)


@dataclass(frozen=True)
class Ranking:
    """Metrics of one split, as means over its users.

    `values` and `masked` map "HR@5" ... "MRR@10" to the figure with all items ranked and with the seen items
    removed. `ties` and `masked_ties` count the users whose figures would be higher had ties gone their way.
    `ranks` [2, users] int32, on the CPU, is each user's rank (from 1) with all items ranked and with the seen
    items removed.
    """

    users: int
    values: dict[str, float]
    masked: dict[str, float]
    ties: int
    masked_ties: int
    ranks: Tensor = field(compare=False, repr=False)

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "users": self.users,
            "unmasked": self.values,
            "masked": self.masked,
            "ties_at_cut": {"unmasked": self.ties, "masked": self.masked_ties},
        }


def target_ranks(scores: Tensor, target: Tensor, removed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """1-based rank of each row's target, and how many other items share its score.

    Args:
        scores: [B, n_items]; column 0 is padding and never ranked.
        target: [B] int64, in 1..n_items-1.
        removed: [B, n_items] bool, items not ranked (the target's own entry is ignored), or None.

    Returns:
        rank [B] int64 = 1 + items scored higher + other items scored equal; ties [B] int64 = the latter.
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


class RankingSums:
    """Adds up the metrics of batches on their device; `result` is the only synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self.users = 0
        self._ranks: list[Tensor] = []  # [2, B] of each batch
        self._sums = torch.zeros(2, len(NAMES), dtype=torch.float64, device=device)
        self._ties = torch.zeros(2, dtype=torch.int64, device=device)
        self._nan_users = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, scores: Tensor, target: Tensor, seen: tuple[Tensor, Tensor]) -> None:
        """Rank one batch.

        Args:
            scores: [B, n_items] of any floating type.
            target: [B] int64.
            seen: (rows [S], items [S]) int64, the items to remove in the masked ranking. Repeats are harmless
                and the target itself stays (a user may meet an item again).
        """
        removed = torch.zeros_like(scores, dtype=torch.bool)
        removed[seen] = True
        ranks = []
        for variant, mask in enumerate((None, removed)):
            rank, ties = target_ranks(scores, target, mask)
            ranks.append(rank)
            self._sums[variant] += metrics_of(rank).sum(0)
            # The best rank these ties allow is inside the widest cut, so the way they fall decides a figure.
            self._ties[variant] += ((ties > 0) & (rank - ties <= max(CUTOFFS))).sum()
        self._ranks.append(torch.stack(ranks).int())
        self._nan_users += scores[:, 1:].isnan().any(1).sum()
        self.users += len(target)

    def result(self) -> Ranking:
        """Means over all users so far.

        Raises:
            RunError: there were NaN scores (every comparison with NaN is false, so the ranks would look
                perfect), or no user at all.
        """
        if self.users == 0:
            raise RunError("there is no user to evaluate")
        nan_users = int(self._nan_users)
        if nan_users:
            raise RunError(f"the model gives NaN scores for {nan_users} of {self.users} users: it diverged")
        unmasked, masked = (self._sums / self.users).tolist()
        ties, masked_ties = self._ties.tolist()
        return Ranking(
            users=self.users,
            values=dict(zip(NAMES, unmasked, strict=True)),
            masked=dict(zip(NAMES, masked, strict=True)),
            ties=ties,
            masked_ties=masked_ties,
            ranks=torch.cat(self._ranks, 1).cpu(),
        )


def metrics_of(rank: Tensor) -> Tensor:
    """[B] ranks from 1 -> each one's metrics, [B, len(NAMES)] float64, in the order of NAMES."""
    position = rank.double()
    columns = []
    for k in CUTOFFS:
        hit = (rank <= k).double()
        columns += [hit, hit / torch.log2(position + 1), hit / position]
    return torch.stack(columns, 1)
