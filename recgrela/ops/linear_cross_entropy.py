"""Cross-entropy of a linear layer's scores, without holding the scores of all rows at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Scores held at a time. Eight MiB in float32: they stay in a CPU's last-level cache between the products.
MAX_LOGITS = 1 << 21


def linear_cross_entropy_reference(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """The definition of `linear_cross_entropy` in plain PyTorch."""
    return F.cross_entropy(hidden @ weight.T, target)


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are made in the forward, chunk by chunk, while the scores are at hand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, max_logits: int) -> Tensor:
        need_grad = any(ctx.needs_input_grad)
        rows = min(max(1, max_logits // weight.shape[0]), hidden.shape[0])
        wide = torch.promote_types(hidden.dtype, torch.float32)
        loss = hidden.new_zeros((), dtype=wide)
        d_hidden = torch.empty_like(hidden) if need_grad else None
        d_weight = torch.zeros_like(weight, dtype=wide) if need_grad else None
        # One buffer for all chunks, and every step in place: fresh memory costs more than the arithmetic.
        products = hidden.new_empty(rows, weight.shape[0])
        widen = wide != hidden.dtype
        scores = torch.empty_like(products, dtype=wide) if widen else products
        for start in range(0, hidden.shape[0], rows):
            h, t = hidden[start : start + rows], target[start : start + rows, None]
            product, x = products[: len(h)], scores[: len(h)]
            torch.mm(h, weight.T, out=product)
            if widen:
                x.copy_(product)
            x -= x.amax(1, keepdim=True)
            loss -= x.gather(1, t).sum()
            norm = x.exp_().sum(1, keepdim=True)
            loss += norm.log().sum()
            if d_hidden is not None and d_weight is not None:
                x /= norm
                x.scatter_add_(1, t, torch.full_like(norm, -1.0))
                if widen:
                    product.copy_(x)
                torch.mm(product, weight, out=d_hidden[start : start + rows])
                d_weight += product.T @ h
        if d_hidden is not None:
            ctx.save_for_backward(d_hidden, d_weight)
        ctx.num_rows = hidden.shape[0]
        return loss / hidden.shape[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        scale = d_loss / ctx.num_rows
        return (d_hidden * scale).to(d_hidden.dtype), (d_weight * scale).to(d_hidden.dtype), None, None


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
        ValueError: on shapes that do not fit or no rows.
        RuntimeError: on a target out of range.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "linear_cross_entropy: hidden must be [T, D] and weight [n_items, D], got "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if target.shape != hidden.shape[:1] or not len(target):
        raise ValueError(
            f"linear_cross_entropy: target must be [{hidden.shape[0]}] and not empty, got "
            f"{tuple(target.shape)}"
        )
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        with torch.autocast(hidden.device.type, enabled=False):
            return _LinearCrossEntropy.apply(hidden.to(dtype), weight.to(dtype), target, max_logits)
    return _LinearCrossEntropy.apply(hidden, weight, target, max_logits)
