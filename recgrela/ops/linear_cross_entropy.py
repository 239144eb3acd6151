"""Cross-entropy of a linear layer's scores, without holding the scores of all rows at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import NO_SECOND_DERIVATIVE
from recgrela.ops.checks import autocast_enabled, check_operands
from recgrela.ops.product import product

# Scores held at a time. Four MiB in float32: they stay in a CPU's caches from one product to the next.
MAX_LOGITS = 1 << 20
NO_INDEX = -(1 << 62)  # for torch's cross-entropy, which insists on an index to ignore


def linear_cross_entropy_reference(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """The definition of `linear_cross_entropy` in plain PyTorch."""
    return F.cross_entropy(hidden @ weight.T, target, ignore_index=NO_INDEX)


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are made in the forward, chunk by chunk, while the scores are at hand."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, max_logits: int, with_grad: bool
    ) -> Tensor:
        need_hidden, need_weight = (with_grad and need for need in ctx.needs_input_grad[:2])
        rows = min(max(1, max_logits // weight.shape[0]), hidden.shape[0])
        wide = torch.promote_types(hidden.dtype, torch.float32)
        loss = hidden.new_zeros((), dtype=wide)
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        # transposed: the product then copies h, which is small, and not the scores
        d_weight = hidden.new_zeros(weight.T.shape, dtype=wide) if need_weight else None
        for start in range(0, hidden.shape[0], rows):
            h, t = hidden[start : start + rows], target[start : start + rows, None]
            scores = product(h, weight).to(wide)
            highest = scores.amax(1)
            loss -= scores.gather(1, t).sum()
            p = torch.softmax(scores, 1)
            # log sum exp, from the item that has at least 1 / n_items of the sum
            loss += (highest - p.amax(1).log_()).sum()
            if need_hidden or need_weight:
                p.scatter_add_(1, t, p.new_full(t.shape, -1.0))
                p = p.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[start : start + rows] = product(p, weight.T)
            if d_weight is not None:
                d_weight += product(h.T, p.T)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.num_rows, ctx.dtype = hidden.shape[0], hidden.dtype
        return loss / hidden.shape[0]

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # with create_graph: the saved gradients would count as constants
            raise NotImplementedError(NO_SECOND_DERIVATIVE)
        scale = d_loss / ctx.num_rows
        d_hidden, d_weight = ctx.saved_tensors
        return (
            None if d_hidden is None else d_hidden * scale.to(ctx.dtype),
            None if d_weight is None else (d_weight.T * scale).to(ctx.dtype),
            None,
            None,
            None,
        )


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, *, max_logits: int = MAX_LOGITS
) -> Tensor:
    """Mean cross-entropy of the scores `hidden @ weight.T`, never holding more than `max_logits` of them.

    Args:
        hidden: [T, D] floating point, T > 0.
        weight: [n_items, D], of one dtype with `hidden`.
        target: [T] int64, each 0 .. n_items - 1.
        max_logits: scores held at a time; at least one row of them always is.

    Returns:
        A scalar; float32 for half-precision operands.

    Raises:
        ValueError: on shapes that do not fit, no rows or no items; TypeError: on dtypes.
        RuntimeError: on a target out of range; there is no index to ignore.
        NotImplementedError: from a second derivative; use `linear_cross_entropy_reference`.
    """
    op = "linear_cross_entropy"
    if hidden.dim() != 2 or 0 in hidden.shape or weight.dim() != 2 or not len(weight):
        raise ValueError(
            f"{op}: hidden must be [T, D] and weight [n_items, D], none of them empty, got "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if max_logits < 1:
        raise ValueError(f"{op}: max_logits must be at least 1, got {max_logits}")
    check_operands(op, "hidden", hidden, any_float=True, weight=(weight, ("n_items", hidden.shape[1])))
    if target.dtype != torch.int64:
        raise TypeError(f"{op}: target must be int64, got {target.dtype}")
    if target.shape != hidden.shape[:1]:
        raise ValueError(f"{op}: target must be [{len(hidden)}], got shape {tuple(target.shape)}")
    args = (target, max_logits, torch.is_grad_enabled())
    device_type = hidden.device.type
    if autocast_enabled(device_type) and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            return _LinearCrossEntropy.apply(hidden.to(dtype), weight.to(dtype), *args)
    return _LinearCrossEntropy.apply(hidden, weight, *args)
