"""Cross-entropy of a linear layer's scores, without storing the scores of all rows at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import NO_SECOND_DERIVATIVE, register_operator
from recgrela.ops.checks import autocast_enabled, check_operands, state_dtype, without_autocast
from recgrela.ops.support import Kernel, Op

# Scores stored at a time: on a CPU 4 MiB in float32, which stay in its caches between products; on a GPU
# 256 MiB, so that each product is large.
MAX_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}
NO_INDEX = -(1 << 62)  # F.cross_entropy always ignores one index; no target has this one

OP = Op("linear_cross_entropy", {"cpu": Kernel((torch.float32, torch.float64))}, None, "composition")


def max_logits_of(device_type: str) -> int:
    """The default number of scores stored at a time on a type of device."""
    return MAX_LOGITS.get(device_type, MAX_LOGITS["cpu"])


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, target: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """The definition of `linear_cross_entropy` in plain PyTorch."""
    scores = hidden @ weight.T
    return F.cross_entropy(scores, target, ignore_index=NO_INDEX, label_smoothing=label_smoothing)


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in `dtype`: products of half-precision operands are accumulated and returned in float32."""
    if a.dtype == dtype:
        return a @ b
    return torch.mm(a, b, out_dtype=dtype) if a.is_cuda else a.to(dtype) @ b.to(dtype)


def _by_chunks(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    max_logits: int,
    needs_d_hidden: bool,
    needs_d_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator in plain PyTorch: gradients are computed chunk by chunk, while the scores exist."""
    dtype = state_dtype(hidden.dtype)
    rows = min(max(1, max_logits // weight.shape[0]), hidden.shape[0])
    loss = hidden.new_zeros((), dtype=dtype)
    d_hidden = torch.empty_like(hidden) if needs_d_hidden else hidden.new_empty(0)
    d_weight = weight.new_zeros(weight.shape, dtype=dtype) if needs_d_weight else weight.new_empty(0)
    for start in range(0, hidden.shape[0], rows):
        h, t = hidden[start : start + rows], target[start : start + rows, None]
        scores = _product(h, weight.T, dtype)
        log_sum = scores.logsumexp(1, keepdim=True)
        loss += (log_sum - scores.gather(1, t)).sum()
        if not (needs_d_hidden or needs_d_weight):
            continue
        p = (scores - log_sum).exp_().scatter_add_(1, t, scores.new_full(t.shape, -1.0)).to(hidden.dtype)
        if needs_d_hidden:
            d_hidden[start : start + rows] = p @ weight
        if needs_d_weight:
            d_weight += _product(p.T, h, dtype)
    n = hidden.shape[0]
    return loss / n, d_hidden / n, (d_weight / n).to(weight.dtype)


torch.library.impl("recgrela::linear_cross_entropy", "CompositeExplicitAutograd")(_by_chunks)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    max_logits: int | None = None,
) -> Tensor:
    """Mean cross-entropy of the scores `hidden @ weight.T`, storing at most `max_logits` of them at a time.

    Args:
        hidden: [T, D] floating point, T > 0. Half precision is computed in float32 on the CPU and accumulated
            in float32 elsewhere.
        weight: [n_items, D], of the dtype of `hidden`.
        target: [T] int64, each 0 .. n_items - 1.
        label_smoothing: probability that is spread evenly over all items, 0 .. 1.
        max_logits: largest number of scores stored at a time; None: `MAX_LOGITS` of the device. At least 48
            rows by two vectors of items are stored on the CPU, and one row elsewhere.

    Returns:
        A scalar; float32 for half-precision operands.

    Raises:
        ValueError: if a shape is wrong, or there are no rows or items; TypeError: if a dtype is wrong.
        RuntimeError: if a target is out of range; no index is ignored.
        NotImplementedError: for second derivatives; use `linear_cross_entropy_reference`.
    """
    op = OP.name
    if hidden.dim() != 2 or 0 in hidden.shape or weight.dim() != 2 or not len(weight):
        raise ValueError(
            f"{op}: hidden must be [T, D] and weight [n_items, D], neither empty, got "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{op}: label_smoothing must be within 0 .. 1, got {label_smoothing}")
    if max_logits is None:
        max_logits = max_logits_of(hidden.device.type)
    if max_logits < 1:
        raise ValueError(f"{op}: max_logits must be at least 1, got {max_logits}")
    check_operands(op, "hidden", hidden, weight=(weight, ("n_items", hidden.shape[1])))
    if target.dtype != torch.int64:
        raise TypeError(f"{op}: target must be int64, got {target.dtype}")
    if target.shape != hidden.shape[:1]:
        raise ValueError(f"{op}: target must be [{len(hidden)}], got shape {tuple(target.shape)}")
    device_type, dtype = hidden.device.type, hidden.dtype
    if autocast_enabled(device_type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
    dtype = OP.implementation(device_type, dtype).dtype
    with_grad = torch.is_grad_enabled()
    with without_autocast(device_type):
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        loss, _, _ = torch.ops.recgrela.linear_cross_entropy(
            hidden,
            weight,
            target,
            max_logits,
            with_grad and hidden.requires_grad,
            with_grad and weight.requires_grad,
        )
        if label_smoothing:  # log Z - (1 - a) s[target] - a mean(s); the mean of all scores is one product
            difference = F.embedding(target, weight) - weight.mean(0, dtype=loss.dtype)
            loss = loss + label_smoothing * (hidden.to(loss.dtype) * difference).sum(1).mean()
    return loss


def _fake(
    hidden: Tensor, weight: Tensor, target: Tensor, max_logits: int, *needs: bool
) -> tuple[Tensor, ...]:
    needs_d_hidden, needs_d_weight = needs
    loss = hidden.new_empty((), dtype=state_dtype(hidden.dtype))
    d_hidden = hidden.new_empty(hidden.shape if needs_d_hidden else 0)
    return loss, d_hidden, weight.new_empty(weight.shape if needs_d_weight else 0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, d_hidden, d_weight = output
    ctx.mark_non_differentiable(d_hidden, d_weight)
    ctx.set_materialize_grads(False)  # zeros for d_weight would be as large as the table
    ctx.computed = inputs[4:]
    ctx.save_for_backward(d_hidden, d_weight)


def _backward(ctx: Any, d_loss: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
    if d_loss is None:
        return (None,) * 6
    if torch.is_grad_enabled():  # create_graph=True, which would treat the saved gradients as constants
        raise NotImplementedError(NO_SECOND_DERIVATIVE)
    # d_loss is usually 1: on the CPU it is free to read and saves a copy. A traced tensor has no value.
    is_one = type(d_loss) is Tensor and d_loss.device.type == "cpu" and d_loss.item() == 1
    gradients = (
        (d if is_one else d * d_loss.to(d.dtype)) if computed else None
        for d, computed in zip(ctx.saved_tensors, ctx.computed, strict=True)
    )
    return *gradients, None, None, None, None


def _flops(
    hidden: Sequence[int],
    weight: Sequence[int],
    target: object,
    max_logits: int,
    needs_d_hidden: bool,
    needs_d_weight: bool,
    **kwargs: Any,
) -> int:
    """2 T D n_items, and as many again for each gradient that the forward computes."""
    return 2 * hidden[0] * math.prod(weight) * (1 + needs_d_hidden + needs_d_weight)


register_operator("linear_cross_entropy", fake=_fake, setup=_setup, backward=_backward, flops=_flops)
