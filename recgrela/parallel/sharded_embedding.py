"""Rows of an item table that is divided over the ranks of a process group."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recgrela.ops import embedding
from recgrela.ops._library import NO_SECOND_DERIVATIVE
from recgrela.ops.checks import check_operands
from recgrela.parallel.collectives import agree, check_group, dtype_number, error_of, exchange
from recgrela.parallel.rows import RowShards

OP = "sharded_embedding"


class _LookUp(torch.autograd.Function):
    """The rows of a shard that other ranks ask for are sent to them; gradients come back the same way."""

    @staticmethod
    def forward(
        ctx: Any,
        shard: Tensor,
        local: Tensor,
        asked: list[int],
        served: list[int],
        group: dist.ProcessGroup | None,
        padding: int | None,
    ) -> Tensor:
        ctx.save_for_backward(local)
        ctx.asked, ctx.served, ctx.group, ctx.padding = asked, served, group, padding
        ctx.shape = shard.shape
        return exchange(shard.index_select(0, local), served, asked, group)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(NO_SECOND_DERIVATIVE)
        (local,) = ctx.saved_tensors
        received = exchange(d_y, ctx.asked, ctx.served, ctx.group)
        d_shard = received.new_zeros(ctx.shape)
        # The ids of one rank are distinct, so that each row is a sum in the order of the ranks.
        for rows, gradients in zip(local.split(ctx.served), received.split(ctx.served), strict=True):
            d_shard.index_add_(0, rows, gradients)
        if ctx.padding is not None:
            d_shard[ctx.padding].zero_()
        return d_shard, None, None, None, None, None


def distinct_rows(
    items: Tensor,
    shard: Tensor,
    rows: RowShards,
    group: dist.ProcessGroup | None = None,
    *,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The rows of the distinct items, each sent once, and the place of each item among them.

    See `sharded_embedding`, which is `looked_up[places]`.

    Returns:
        looked_up [U, D], of the dtype of `shard`, and places [T] int64 in 0 .. U - 1.
    """
    check_group(OP, rows, group)
    error = error_of(lambda: _check(items, shard, rows, padding_idx))
    needs_grad = torch.is_grad_enabled() and shard.requires_grad
    counts = [0] * rows.world
    if error is None:
        ids, places = torch.unique(items, return_inverse=True)  # sorted
        ends = ids.new_tensor([rows.begin_of(rank) for rank in range(rows.world + 1)])
        # The host reads the smallest and largest id, and how many ids each rank has, together.
        bounds = torch.cat([torch.searchsorted(ids, ends), ids[:1], ids[-1:]]).tolist()
        counts = [end - begin for begin, end in itertools.pairwise(bounds[: rows.world + 1])]
        if sum(counts) != len(ids):
            error = ValueError(
                f"{OP}: items must be within 0 .. {rows.n_items - 1}, got {bounds[-2]} .. {bounds[-1]}"
            )
    same = {
        "the number of items": rows.n_items,
        "the width of the table": shard.shape[-1] if shard.dim() else 0,
        "the dtype of the table": dtype_number(shard.dtype) if shard.is_floating_point() else -1,
        "whether the table needs a gradient": needs_grad,
    }
    numbers = agree(OP, rows, group, shard.device, error, same, [[count] for count in counts])
    asked, served = counts, [int(count) for (count,) in numbers]
    local = rows.local(exchange(ids, asked, served, group))
    padding = None
    if padding_idx is not None and rows.begin <= padding_idx < rows.end:
        padding = padding_idx - rows.begin
    return _LookUp.apply(shard, local, asked, served, group, padding), places


def sharded_embedding(
    items: Tensor,
    shard: Tensor,
    rows: RowShards,
    group: dist.ProcessGroup | None = None,
    *,
    padding_idx: int | None = None,
) -> Tensor:
    """`recgrela.ops.embedding(items, table, padding_idx=...)` of a table divided over the ranks of a group.

    All ranks call it together, and their backwards, each with its own items. Only distinct ids are sent, once
    to the rank that has the row, and one row comes back for each. The gradient of a row is a sum in a fixed
    order. The host waits for the device, so that a CUDA graph cannot hold it.

    Args:
        items: [T] int64; T may differ between ranks and be 0.
        shard: [rows.count, D], this rank's rows of the table, any floating dtype.
        rows: how the rows are divided.
        group: the process group with the ranks of `rows`; None: the default one.
        padding_idx: row of the whole table that gets no gradient, 0 .. n_items - 1.

    Returns:
        [T, D], of the dtype of `shard`.

    Raises:
        ValueError: if a shape, a device, an item or the group is wrong, on any rank, or ranks disagree on the
            table; TypeError: if a dtype is wrong. Every rank raises, before any rows are sent.
        NotImplementedError: for second derivatives.
    """
    looked_up, places = distinct_rows(items, shard, rows, group, padding_idx=padding_idx)
    return embedding(places, looked_up) if len(places) else looked_up


def _check(items: Tensor, shard: Tensor, rows: RowShards, padding_idx: int | None) -> None:
    if shard.dim() != 2 or shard.shape[0] != rows.count or not shard.shape[1]:
        raise ValueError(
            f"{OP}: shard must be [{rows.count}, D] on rank {rows.rank}, got shape {tuple(shard.shape)}"
        )
    check_operands(OP, "shard", shard, items=(items, ("T",), torch.int64))
    if padding_idx is not None and not 0 <= padding_idx < rows.n_items:
        raise ValueError(f"{OP}: padding_idx must be in 0 .. {rows.n_items - 1}, got {padding_idx}")
