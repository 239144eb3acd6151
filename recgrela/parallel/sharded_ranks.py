"""Ranks of target items among all items, with a table divided over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops.checks import check_operands
from recgrela.ops.linear_cross_entropy import max_logits_of
from recgrela.parallel.collectives import (
    agree,
    check_group,
    dtype_number,
    error_of,
    exchange,
    gather,
    sum_to_owners,
)
from recgrela.parallel.rows import RowShards
from recgrela.parallel.sharded_cross_entropy import Pieces, check_rows, pieces_of

OP = "sharded_ranks"
COLUMNS = 64  # a multiple of the columns that a matrix product computes in one way


@torch.no_grad()
def sharded_ranks(
    hidden: Tensor,
    target: Tensor,
    removed: tuple[Tensor, Tensor],
    shard: Tensor,
    rows: RowShards,
    group: dist.ProcessGroup | None = None,
    bias_shard: Tensor | None = None,
    *,
    max_logits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The ranks of `target_ranks` in `recgrela.evaluation.metrics`, without the scores of all items at once.

    All ranks of the group call it together, each with its own users. Item 0 is not ranked. All scores come
    from products of matrices of one shape, so that equal rows of the table have equal scores, and a target's
    score is one of them.

    Args:
        hidden: [B, D] floating point, the states of this rank's users; B may differ between ranks and be 0.
        target: [B] int64, each 1 .. n_items - 1.
        removed: users [S] int64, each 0 .. B - 1, and items [S] int64: the items to remove in the second
            ranking. A user's target is never removed.
        shard, rows, group, bias_shard: see `sharded_linear_cross_entropy`.
        max_logits: about the largest number of scores stored at a time; None: that of `linear_cross_entropy`.

    Returns:
        rank [2, B] int64, with all items ranked and with the removed items left out: 1 + items with higher
        scores + other items with an equal score; ties [2, B] int64, the other items with an equal score;
        has_nan [B] bool, whether the score of a ranked item is NaN.

    Raises:
        ValueError: if a shape, a device, an item or the group is wrong, on any rank, or ranks disagree;
            TypeError: if a dtype is wrong. Every rank raises, before any rows are sent.
    """
    check_group(OP, rows, group)
    if max_logits is None:
        max_logits = max_logits_of(hidden.device.type)
    error = error_of(lambda: _check(hidden, target, removed, shard, rows, bias_shard, max_logits))
    same = {
        "the number of items": rows.n_items,
        "the width of the table": hidden.shape[-1] if hidden.dim() else 0,
        "the dtype of hidden": dtype_number(hidden.dtype) if hidden.is_floating_point() else -1,
        "whether there is a bias": bias_shard is not None,
        "max_logits": max_logits,
    }
    own = [[len(hidden) if hidden.dim() else 0]] * rows.world
    numbers = agree(OP, rows, group, hidden.device, error, same, own)
    pieces = pieces_of([int(total) for (total,) in numbers], max_logits)
    routed = _route(removed, pieces, rows, group)
    parts = [target.new_empty(0, 5)]
    for (start, counts), hidden_pairs in zip(pieces.counts(), routed, strict=True):
        mine = slice(start, start + counts[rows.rank])
        h, t = gather(hidden[mine], counts, group), gather(target[mine], counts, group)
        blocks = _Blocks(h, shard, bias_shard, rows, max_logits)
        own_scores = _target_scores(t, blocks, rows, counts, group)
        counted = _count(t, own_scores, hidden_pairs, blocks, rows)
        parts.append(sum_to_owners(counted, counts, rows.rank, group))
    higher, higher_left, ties, ties_left, nan = torch.cat(parts).unbind(1)
    tied = torch.stack([ties, ties_left])
    return 1 + torch.stack([higher, higher_left]) + tied, tied, nan > 0


class _Blocks:
    """Scores of the items of a shard for the users of a piece, block by block, all of one shape."""

    def __init__(
        self, h: Tensor, shard: Tensor, bias: Tensor | None, rows: RowShards, max_logits: int
    ) -> None:
        self.h, self._shard, self._bias = h, shard, bias
        fitting = max_logits // h.shape[0] // COLUMNS * COLUMNS
        self.size = max(COLUMNS, min(fitting, -(-rows.block // COLUMNS) * COLUMNS))

    def starts(self) -> range:
        """The first row of each block in the shard."""
        return range(0, self._shard.shape[0], self.size)

    def scores(self, start: int) -> Tensor:
        """[G, size]; the columns after the end of the shard are of no item."""
        weight = self._shard[start : start + self.size]
        missing = self.size - weight.shape[0]
        scores = self.h @ F.pad(weight, (0, 0, 0, missing)).T
        if self._bias is None:
            return scores
        return scores + F.pad(self._bias[start : start + self.size], (0, missing))


def _target_scores(
    target: Tensor, blocks: _Blocks, rows: RowShards, counts: list[int], group: dist.ProcessGroup | None
) -> Tensor:
    """The score of each target, [G, 1], from the blocks that have it."""
    local = rows.local(target)
    own = blocks.h.new_zeros(len(target))
    held = local[(local >= 0) & (local < rows.count)]
    for block in torch.unique(held // blocks.size).tolist():
        start = block * blocks.size
        scores = blocks.scores(start)
        inside = (local >= start) & (local < start + blocks.size)
        column = (local - start).clamp(0, blocks.size - 1)[:, None]
        own = torch.where(inside, scores.gather(1, column)[:, 0], own)
    # One rank has the score and the others 0, so that the sum is the score.
    own = gather(sum_to_owners(own, counts, rows.rank, group), counts, group)
    return own[:, None]


def _count(
    target: Tensor, own: Tensor, removed: tuple[Tensor, Tensor], blocks: _Blocks, rows: RowShards
) -> Tensor:
    """Numbers of items of this shard, int64 [G, 5].

    Higher than the target, the same without removed items, equal to it, the same without removed items, NaN.
    """
    (users, items), local = removed, rows.local(target)
    total = target.new_zeros(target.shape[0], 5)
    one = torch.ones((), dtype=torch.bool, device=target.device)
    for start in blocks.starts():
        scores = blocks.scores(start)
        item = torch.arange(start, start + blocks.size, device=target.device)
        ranked = (item < rows.count) & (item + rows.begin > 0)
        others = ranked & (item != local[:, None])
        higher, equal = (scores > own) & others, (scores == own) & others
        # One more column takes the items of other blocks.
        left = scores.new_ones(scores.shape[0], blocks.size + 1, dtype=torch.bool)
        inside = (items >= start) & (items < start + blocks.size)
        left[users, torch.where(inside, items - start, blocks.size)] = ~one
        left = left[:, :-1]
        found = (higher, higher & left, equal, equal & left, scores.isnan() & ranked)
        total += torch.stack([x.sum(1) for x in found], 1)
    return total


def _route(
    removed: tuple[Tensor, Tensor], pieces: Pieces, rows: RowShards, group: dist.ProcessGroup | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each piece, the pairs with items of this rank: rows of the piece [S] and of the shard [S]."""
    users, items = removed
    world, steps = rows.world, len(list(pieces.counts()))
    owner = rows.owner(items)
    key = owner * steps + users // pieces.each
    order = key.argsort(stable=True)
    pairs = torch.stack([users % pieces.each, items - owner * rows.block], 1)[order]
    sent = torch.bincount(key, minlength=world * steps).view(world, steps)
    received = exchange(sent, [1] * world, [1] * world, group)
    ends = sent.flatten().cumsum(0).view(world, steps)
    begins = (ends - sent).T.tolist()
    sends, receives, stops = sent.T.tolist(), received.T.tolist(), ends.T.tolist()
    for step, (_, counts) in enumerate(pieces.counts()):
        mine = torch.cat([pairs[a:b] for a, b in zip(begins[step], stops[step], strict=True)])
        theirs = exchange(mine, sends[step], receives[step], group)
        first = 0
        for rank, part in enumerate(theirs.split(receives[step])):
            part[:, 0] += first
            first += counts[rank]
        yield theirs[:, 0], theirs[:, 1]


def _check(
    hidden: Tensor,
    target: Tensor,
    removed: tuple[Tensor, Tensor],
    shard: Tensor,
    rows: RowShards,
    bias: Tensor | None,
    max_logits: int,
) -> None:
    check_rows(OP, hidden, shard, target, rows, bias)
    if hidden.dtype != shard.dtype:
        raise TypeError(f"{OP}: shard is {shard.dtype}, hidden is {hidden.dtype}; they must agree")
    if max_logits < 1:
        raise ValueError(f"{OP}: max_logits must be at least 1, got {max_logits}")
    users, items = removed
    check_operands(
        OP, "hidden", hidden, users=(users, ("S",), torch.int64), items=(items, (len(users),), torch.int64)
    )
    if len(target) and int(target.min()) == 0:
        raise ValueError(f"{OP}: target 0 is the padding item, which is not ranked")
    for name, x, size in (("users", users, len(hidden)), ("items", items, rows.n_items)):
        if len(x) and not 0 <= int(x.min()) <= int(x.max()) < size:
            raise ValueError(
                f"{OP}: removed {name} must be within 0 .. {size - 1}, got {int(x.min())} .. {int(x.max())}"
            )
