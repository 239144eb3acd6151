"""Cross-entropy of scores of all items, with an item table divided over the ranks of a process group.

Each rank computes the scores of its own items for the rows of all ranks, which it gathers in bounded pieces.
Blocks of scores are computed twice, for the log-sum-exp in the forward and for the gradients in the backward,
and not stored in between: only the shard and its gradient grow with the number of items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from recgrela.ops._library import NO_SECOND_DERIVATIVE
from recgrela.ops.checks import autocast_enabled, check_operands, state_dtype, without_autocast
from recgrela.ops.linear_cross_entropy import OP as PLAIN
from recgrela.ops.linear_cross_entropy import _product, max_logits_of
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

OP = "sharded_linear_cross_entropy"


class Pieces(NamedTuple):
    """How the rows of all ranks are gathered piece by piece.

    Attributes:
        totals: number of rows of each rank.
        each: largest number of rows of one rank in a piece.
    """

    totals: list[int]
    each: int

    def counts(self) -> Iterator[tuple[int, list[int]]]:
        """The first row of each piece, the same on all ranks, and the number of rows of each rank in it."""
        for start in range(0, max(self.totals), self.each):
            yield start, [min(max(total - start, 0), self.each) for total in self.totals]


def pieces_of(totals: list[int], max_logits: int) -> Pieces:
    """Pieces for square blocks of scores, which do the most work for each number that is read."""
    return Pieces(totals, max(1, math.isqrt(max_logits) // len(totals)))


class _Options(NamedTuple):
    rows: RowShards
    group: dist.ProcessGroup | None
    totals: list[int]
    label_smoothing: float
    max_logits: int
    row_dtype: torch.dtype
    needs_d_hidden: bool  # of any rank


class _Block(NamedTuple):
    """The scores of items `items` of the shard for the rows of a piece, and where their targets are."""

    items: slice
    weight: Tensor
    scores: Tensor
    column: Tensor  # [G, 1], of the target, clamped to the block
    inside: Tensor  # [G], whether the target is in the block


def _blocks(
    h: Tensor, target: Tensor, shard: Tensor, bias: Tensor | None, options: _Options
) -> Iterator[_Block]:
    dtype, count = state_dtype(options.row_dtype), shard.shape[0]
    size = max(1, options.max_logits // max(1, h.shape[0]))
    local = options.rows.local(target)
    for start in range(0, count, size):
        stop = min(start + size, count)
        weight = shard[start:stop].to(options.row_dtype)
        scores = _product(h, weight.T, dtype)
        if bias is not None:
            scores += bias[start:stop]
        inside = (local >= start) & (local < stop)
        column = (local - start).clamp(0, stop - start - 1)[:, None]
        yield _Block(slice(start, stop), weight, scores, column, inside)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, accumulated in the dtype of `total`."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += _product(a, b, total.dtype)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, shard: Tensor, bias: Tensor | None, target: Tensor, options: _Options
    ) -> Tensor:
        rows, group, totals = options.rows, options.group, options.totals
        dtype, smoothing = state_dtype(options.row_dtype), options.label_smoothing
        own = hidden.to(options.row_dtype)
        log_sums = hidden.new_empty(len(hidden), dtype=dtype)
        loss = hidden.new_zeros((), dtype=dtype)
        for start, counts in pieces_of(totals, options.max_logits).counts():
            mine = slice(start, start + counts[rows.rank])
            h, t = gather(own[mine], counts, group), gather(target[mine], counts, group)
            log_sum = h.new_full(t.shape, -math.inf, dtype=dtype)
            score, total = log_sum.new_zeros(2, len(t))
            for block in _blocks(h, t, shard, bias, options):
                log_sum = torch.logaddexp(log_sum, block.scores.logsumexp(1))
                found = block.scores.gather(1, block.column)[:, 0]
                score = torch.where(block.inside, found, score)
                if smoothing:
                    total += block.scores.sum(1)
            n = counts[rows.rank]
            parts = exchange(torch.stack([log_sum, score, total], 1), counts, [n] * rows.world, group)
            log_sum, score, total = parts.view(rows.world, n, 3).unbind(2)
            log_sums[mine] = log_sum.logsumexp(0)
            loss += (log_sums[mine] - (1 - smoothing) * score.sum(0)).sum()
            if smoothing:
                loss -= smoothing / rows.n_items * total.sum()
        ctx.save_for_backward(hidden, shard, bias, target, log_sums)
        ctx.options = options
        return loss / max(1, len(hidden))

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(NO_SECOND_DERIVATIVE)
        options: _Options = ctx.options
        with without_autocast(d_loss.device.type):
            gradients = _gradients(d_loss, ctx.saved_tensors, options, ctx.needs_input_grad)
        return *gradients, None, None


def _gradients(
    d_loss: Tensor,
    saved: tuple[Any, ...],
    options: _Options,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    hidden, shard, bias, target, log_sums = saved
    rows, group, totals = options.rows, options.group, options.totals
    dtype, smoothing = log_sums.dtype, options.label_smoothing
    needs_d_hidden, needs_d_shard, needs_d_bias, *_ = needs
    # A row of rank r has the weight d_loss[r] / T[r]. Products are multiplied by the largest weight last,
    # because half precision could round all weights to zero.
    weight = (d_loss * (1 / len(hidden) if len(hidden) else 0.0)).to(dtype)
    weights = gather(weight[None], [1] * rows.world, group)
    largest = weights.abs().max()
    relative = weights / largest.clamp(min=torch.finfo(dtype).tiny)
    own = hidden.to(options.row_dtype)
    d_hidden = hidden.new_empty(hidden.shape)
    d_shard = torch.zeros_like(shard, dtype=dtype) if needs_d_shard else None
    d_bias = torch.zeros_like(bias, dtype=dtype) if bias is not None and needs_d_bias else None
    for start, counts in pieces_of(totals, options.max_logits).counts():
        mine = slice(start, start + counts[rows.rank])
        h, t = gather(own[mine], counts, group), gather(target[mine], counts, group)
        log_sum = gather(log_sums[mine], counts, group)[:, None]
        u = torch.cat([relative[rank].expand(n) for rank, n in enumerate(counts)])
        weighted = h * u.to(h.dtype)[:, None]
        d_h = h.new_zeros(h.shape, dtype=dtype)
        for block in _blocks(h, t, shard, bias, options):
            p = block.scores.sub_(log_sum).exp_()
            if smoothing:
                p -= smoothing / rows.n_items
            p.scatter_add_(1, block.column, ((smoothing - 1) * block.inside.to(dtype))[:, None])
            if d_bias is not None:
                d_bias[block.items].addmv_(p.T, u)
            p = p.to(options.row_dtype)
            if options.needs_d_hidden:
                _add_product(d_h, p, block.weight)
            if d_shard is not None:
                _add_product(d_shard[block.items], p.T, weighted)
        if options.needs_d_hidden:
            d_hidden[mine] = sum_to_owners(d_h, counts, rows.rank, group) * weight
    return (
        d_hidden if needs_d_hidden else None,
        None if d_shard is None else d_shard.mul_(largest).to(shard.dtype),
        None if d_bias is None or bias is None else d_bias.mul_(largest).to(bias.dtype),
    )


def sharded_linear_cross_entropy(
    hidden: Tensor,
    shard: Tensor,
    target: Tensor,
    rows: RowShards,
    group: dist.ProcessGroup | None = None,
    bias_shard: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    max_logits: int | None = None,
) -> Tensor:
    """`recgrela.ops.linear_cross_entropy` with a table divided over the ranks of a group.

    All ranks call it together, and its backward, each with its own rows. The gradient of a shard is that of
    the sum over ranks of d_loss times loss, with each rank's own d_loss: it needs no further reduction. The
    host waits for the device, so that a CUDA graph cannot hold it.

    Args:
        hidden: [T, D] floating point, this rank's rows; T may differ between ranks and be 0. Dtypes are
            treated as in `linear_cross_entropy`.
        shard: [rows.count, D], this rank's rows of the table, of the dtype of `hidden`, or float32 if that is
            half precision.
        target: [T] int64, each 0 .. n_items - 1.
        rows: how the rows of the table are divided.
        group: the process group with the ranks of `rows`; None: the default one.
        bias_shard: [rows.count], of the dtype of `shard`, or None on all ranks.
        label_smoothing: probability that is spread evenly over all items, 0 .. 1.
        max_logits: largest number of scores stored at a time; None: that of `linear_cross_entropy`. At least
            one item's scores of one row of each rank are stored. About sqrt(max_logits) rows of all ranks are
            gathered at a time.

    Returns:
        A scalar, the mean over this rank's rows, 0 if it has none; float32 for half-precision operands.

    Raises:
        ValueError: if a shape, a device, a target or the group is wrong, on any rank, or ranks disagree;
            TypeError: if a dtype is wrong. Every rank raises, before any rows are sent.
        NotImplementedError: for second derivatives.
    """
    check_group(OP, rows, group)
    if max_logits is None:
        max_logits = max_logits_of(hidden.device.type)
    error = error_of(lambda: _check(hidden, shard, target, rows, bias_shard, label_smoothing, max_logits))
    device_type, dtype = hidden.device.type, hidden.dtype
    if autocast_enabled(device_type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
    row_dtype, width = dtype, 0
    if error is None:
        width = hidden.shape[1]
        row_dtype = PLAIN.implementation(device_type, dtype, warn=False, widths=(width,)).dtype
    with_grad = torch.is_grad_enabled()
    needs = [with_grad and x is not None and x.requires_grad for x in (hidden, shard, bias_shard)]
    same = {
        "the number of items": rows.n_items,
        "the width of the table": width,
        "the dtype of hidden": dtype_number(row_dtype) if row_dtype.is_floating_point else -1,
        "whether there is a bias": bias_shard is not None,
        "label_smoothing": label_smoothing,
        "max_logits": max_logits,
        "whether a gradient is needed": any(needs),
    }
    own = [[len(hidden) if hidden.dim() else 0, needs[0]]] * rows.world
    numbers = agree(OP, rows, group, hidden.device, error, same, own)
    options = _Options(
        rows,
        group,
        [int(count) for count, _ in numbers],
        float(label_smoothing),
        max_logits,
        row_dtype,
        any(needs_d_hidden for _, needs_d_hidden in numbers),
    )
    with without_autocast(device_type):
        loss: Tensor = _CrossEntropy.apply(hidden, shard, bias_shard, target, options)
    return loss


def _check(
    hidden: Tensor,
    shard: Tensor,
    target: Tensor,
    rows: RowShards,
    bias: Tensor | None,
    label_smoothing: float,
    max_logits: int,
) -> None:
    check_rows(OP, hidden, shard, target, rows, bias)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{OP}: label_smoothing must be within 0 .. 1, got {label_smoothing}")
    if max_logits < 1:
        raise ValueError(f"{OP}: max_logits must be at least 1, got {max_logits}")


def check_rows(
    op: str, hidden: Tensor, shard: Tensor, target: Tensor | None, rows: RowShards, bias: Tensor | None
) -> None:
    """Check hidden [T, D], shard [rows.count, D], target [T] in 0 .. n_items - 1 and bias [rows.count].

    Raises:
        ValueError: if a shape, a device or a target is wrong; TypeError: if a dtype is.
    """
    if hidden.dim() != 2 or not hidden.shape[1]:
        raise ValueError(f"{op}: hidden must be [T, D], got shape {tuple(hidden.shape)}")
    own_dtype = (shard.dtype,) if shard.dtype == state_dtype(hidden.dtype) else ()
    check_operands(op, "hidden", hidden, shard=(shard, (rows.count, hidden.shape[1]), *own_dtype))
    check_operands(op, "shard", shard, bias_shard=(bias, (rows.count,)))
    if target is None:
        return
    check_operands(op, "hidden", hidden, target=(target, (len(hidden),), torch.int64))
    if len(target):
        low, high = torch.stack(target.aminmax()).tolist()
        if low < 0 or high >= rows.n_items:
            raise ValueError(f"{op}: target must be within 0 .. {rows.n_items - 1}, got {low} .. {high}")
