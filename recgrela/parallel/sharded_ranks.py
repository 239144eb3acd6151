"""Ranks of target items among all items, with a table divided over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
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
from recgrela.parallel.score_blocks import ScoreBlocks, TargetRanks, equal_block_rows, pairs_removed
from recgrela.parallel.sharded_cross_entropy import Pieces, check_rows, pieces_of

OP = "sharded_ranks"


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
    k: int = 0,
    max_logits: int | None = None,
) -> TargetRanks:
    """The ranks of targets and the best items, without the scores of all items in one place.

    All ranks of the group call it together, each with its own users. Item 0 is not ranked. All scores come
    from products of matrices of one shape, so that equal rows of the table have equal scores, and a target's
    score is one of them.

    Args:
        hidden: [B, D] floating point, the states of this rank's users; B may differ between ranks and be 0.
        target: [B] int64, each 1 .. n_items - 1.
        removed: users [S] int64, each 0 .. B - 1, and items [S] int64: the items to remove in the second
            ranking.
        shard, rows, group, bias_shard: see `sharded_linear_cross_entropy`.
        k: number of best items; the same on all ranks. 0: none.
        max_logits: about the largest number of scores stored at a time; None: that of `linear_cross_entropy`.

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
        "k": k,
    }
    own = [[len(hidden) if hidden.dim() else 0]] * rows.world
    numbers = agree(OP, rows, group, hidden.device, error, same, own)
    pieces = pieces_of([int(total) for (total,) in numbers], max_logits)
    routed = _route(removed, pieces, rows, group)
    parts = [target.new_empty(0, 5)]
    best = [target.new_empty(2, 0, k)]
    for (start, counts), hidden_pairs in zip(pieces.counts(), routed, strict=True):
        mine = slice(start, start + counts[rows.rank])
        h, t = gather(hidden[mine], counts, group), gather(target[mine], counts, group)
        size = equal_block_rows(len(h), rows.block, max_logits)
        blocks = ScoreBlocks.of_table([h], shard, bias_shard, size, rows.begin)
        # One rank has a target's score and the others 0, so that the sum is the score.
        score = sum_to_owners(blocks.own(rows.local(t)), counts, rows.rank, group)
        removed_rows = pairs_removed(*hidden_pairs, len(h))
        counted = blocks.counts(rows.local(t), gather(score, counts, group), removed_rows)
        parts.append(sum_to_owners(counted, counts, rows.rank, group))
        if k:
            best.append(_best_of_all(*blocks.best(k, removed_rows), counts, rows.rank, group))
    higher, higher_left, ties, ties_left, nan = torch.cat(parts).unbind(1)
    tied = torch.stack([ties, ties_left])
    items = torch.cat(best, 1) if k else target.new_empty(2, len(target), 0)
    return TargetRanks(1 + torch.stack([higher, higher_left]) + tied, tied, nan > 0, items)


def _best_of_all(
    values: Tensor, items: Tensor, counts: list[int], rank: int, group: dist.ProcessGroup | None
) -> Tensor:
    """The best items of this rank's users, [2, n, k], from the best ones [2, G, k] in each rank's shard."""
    world, k = len(counts), values.shape[2]
    if world == 1:
        return items
    every = [
        exchange(x.transpose(0, 1), counts, [counts[rank]] * world, group).unflatten(0, (world, counts[rank]))
        for x in (values, items)
    ]
    values, items = (x.permute(2, 1, 0, 3).flatten(2) for x in every)  # [2, n, world * k]
    return items.gather(2, values.topk(k, 2).indices)


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
