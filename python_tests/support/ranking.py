"""Ranks and best items of whole score matrices, which those of blocks must equal."""

from __future__ import annotations

import torch
from torch import Tensor


def target_ranks(scores: Tensor, target: Tensor, removed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The rank, from 1, of each row's target, and the number of other items with its score.

    Args:
        scores: [B, n_items]; column 0 is padding and is not ranked.
        target: [B] int64, in 1..n_items-1.
        removed: [B, n_items] bool, items that are not ranked (the target's entry is ignored), or None.
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


def assert_best(scores: Tensor, removed: Tensor | None, items: Tensor) -> None:
    """Asserts that items [B, k] are those with the highest scores that are not removed, or -1 for missing."""
    left = torch.ones_like(scores, dtype=torch.bool) if removed is None else ~removed
    left[:, 0] = False
    left &= ~scores.isnan()
    expected = torch.where(left, scores, -torch.inf).sort(1, descending=True).values[:, : items.shape[1]]
    is_item = torch.arange(items.shape[1]) < left.sum(1)[:, None]
    assert torch.equal(items >= 0, is_item)
    got = scores.gather(1, items.clamp(min=0))
    is_found = is_item[:, : expected.shape[1]]
    assert torch.equal(got[:, : expected.shape[1]][is_found], expected[is_found])
    for row in items.tolist():
        found = [item for item in row if item >= 0]
        assert len(set(found)) == len(found)
