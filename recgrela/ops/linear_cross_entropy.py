"""Cross-entropy of a linear layer's scores, without storing the scores of all rows at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import (
    NO_SECOND_DERIVATIVE,
    call_operator,
    is_transformed,
    may_need_gradient,
    register_operator,
)
from recgrela.ops.checks import autocast_enabled, cast, check_operands, state_dtype, without_autocast
from recgrela.ops.support import Kernel, Op

# Scores stored at a time: on a CPU 4 MiB in float32, which stay in its caches between products; on a GPU
# 256 MiB, so that each product is large.
MAX_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}
NO_INDEX = -(1 << 62)  # F.cross_entropy always ignores one index; no target has this one


def max_logits_of(device_type: str) -> int:
    """The default number of scores stored at a time on a type of device."""
    return MAX_LOGITS.get(device_type, MAX_LOGITS["cpu"])


def unit_gradient(device: torch.device) -> Tensor:
    """The number 1 in float32 on a device, for `loss.backward(unit_gradient(device))`.

    `linear_cross_entropy` knows this tensor, whose value must not change, and does not multiply its gradients
    by it. It cannot know the 1 that `loss.backward()` fills in, without waiting for the device.
    """
    one = torch.ones((), dtype=torch.float32, device=device)
    one.is_unit_gradient = True  # type: ignore[attr-defined]
    return one


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The definition of `linear_cross_entropy` in plain PyTorch."""
    scores = F.linear(hidden, weight, bias)
    return F.cross_entropy(scores, target, ignore_index=NO_INDEX, label_smoothing=label_smoothing)


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in `dtype`: products of half-precision operands are accumulated and returned in float32."""
    if a.dtype == dtype:
        return a @ b
    return torch.mm(a, b, out_dtype=dtype) if a.is_cuda else a.to(dtype) @ b.to(dtype)


def _gradient_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of d_hidden in the forward, before d_loss multiplies it.

    float16 would round the gradients of a mean over many rows to zero, whatever d_loss loss scaling chooses.
    """
    return torch.float32 if hidden.dtype == torch.float16 else hidden.dtype


def _by_chunks(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    row_dtype: torch.dtype,
    label_smoothing: float,
    max_logits: int,
    needs_d_hidden: bool,
    needs_d_weight: bool,
    needs_d_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator in plain PyTorch: gradients are computed chunk by chunk, while the scores exist."""
    n, n_items = hidden.shape[0], weight.shape[0]
    dtype, parameter_dtype, gradient_dtype = state_dtype(row_dtype), weight.dtype, _gradient_dtype(hidden)
    hidden, weight = hidden.to(row_dtype), weight.to(row_dtype)
    rows = min(max(1, max_logits // n_items), n)
    loss = hidden.new_zeros((), dtype=dtype)
    d_hidden = hidden.new_empty(hidden.shape if needs_d_hidden else 0, dtype=gradient_dtype)
    d_weight = weight.new_zeros(weight.shape, dtype=dtype) if needs_d_weight else loss.new_empty(0)
    d_bias = loss.new_zeros(n_items) if needs_d_bias else loss.new_empty(0)
    # Smoothing subtracts a mean(s) from the loss of a row, the same vectors from all rows of the gradients.
    mean_weight = weight.mean(0, dtype=dtype) if label_smoothing else None
    for start in range(0, n, rows):
        h, t = hidden[start : start + rows], target[start : start + rows, None]
        scores = _product(h, weight.T, dtype)
        if bias is not None:
            scores += bias
        log_sum = scores.logsumexp(1, keepdim=True)
        loss += (log_sum - (1 - label_smoothing) * scores.gather(1, t)).sum()
        if not (needs_d_hidden or needs_d_weight or needs_d_bias):
            continue
        p = (scores - log_sum).exp_()
        p.scatter_add_(1, t, scores.new_full(t.shape, label_smoothing - 1))
        if needs_d_bias:
            d_bias += p.sum(0)
        p = p.to(row_dtype)
        if needs_d_hidden:
            product = _product(p, weight, dtype)
            if mean_weight is not None:
                product.sub_(mean_weight, alpha=label_smoothing)
            d_hidden[start : start + rows] = product / n
        if needs_d_weight:
            d_weight += _product(p.T, h, dtype)
    loss, d_weight, d_bias = loss / n, d_weight / n, d_bias / n
    if mean_weight is not None:
        mean_hidden = hidden.mean(0, dtype=dtype)
        mean_score = (mean_hidden * mean_weight).sum()
        loss -= label_smoothing * (mean_score if bias is None else mean_score + bias.mean())
        d_weight -= label_smoothing / n_items * (mean_hidden if needs_d_weight else 0)
        d_bias -= label_smoothing / n_items
    return loss, d_hidden, d_weight.to(parameter_dtype), d_bias


# The operator of the composition, with the signature of the kernels' operator.
torch.library.define(
    "recgrela::linear_cross_entropy_by_chunks",
    str(torch.ops.recgrela.linear_cross_entropy.default._schema).partition("linear_cross_entropy")[2],
)
torch.library.impl("recgrela::linear_cross_entropy_by_chunks", "CompositeExplicitAutograd")(_by_chunks)

OP = Op(
    "linear_cross_entropy",
    {
        "cpu": Kernel((torch.float32, torch.float64)),
        "cuda": Kernel((torch.float32, torch.float16, torch.bfloat16), widths=range(32, 257, 16)),
    },
    torch.ops.recgrela.linear_cross_entropy_by_chunks,
    "composition",
)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    max_logits: int | None = None,
) -> Tensor:
    """Mean cross-entropy of the scores `hidden @ weight.T + bias`, without storing the scores of all rows.

    Args:
        hidden: [T, D] floating point, T > 0. Half precision is computed in float32 on the CPU and accumulated
            in float32 elsewhere. Under autocast, float32 rows are rounded, but not their gradient.
        weight: [n_items, D], of the dtype of `hidden`, or float32 if that is half precision.
        target: [T] int64, each 0 .. n_items - 1.
        bias: [n_items], of the dtype of `weight`, or None.
        label_smoothing: probability that is spread evenly over all items, 0 .. 1.
        max_logits: largest number of scores stored at a time; None: `MAX_LOGITS` of the device. At least 48
            rows by two vectors of items are stored on the CPU, and one row elsewhere. The CUDA kernels store
            none, so that it has no effect there.

    Returns:
        A scalar; float32 for half-precision operands.

    Raises:
        ValueError: if a shape is wrong, or there are no rows or items; TypeError: if a dtype is wrong.
        RuntimeError: if a target is out of range, by a device-side assertion of the CUDA kernels; no index
            is ignored.
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
    own_dtype = (weight.dtype,) if weight.dtype == state_dtype(hidden.dtype) else ()
    check_operands(op, "hidden", hidden, weight=(weight, ("n_items", hidden.shape[1]), *own_dtype))
    check_operands(op, "weight", weight, bias=(bias, (weight.shape[0],)))
    if target.dtype != torch.int64:
        raise TypeError(f"{op}: target must be int64, got {target.dtype}")
    if target.shape != hidden.shape[:1]:
        raise ValueError(f"{op}: target must be [{len(hidden)}], got shape {tuple(target.shape)}")
    device_type, dtype = hidden.device.type, hidden.dtype
    if autocast_enabled(device_type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
    dtype = OP.implementation(device_type, dtype, widths=(hidden.shape[1],)).dtype
    with without_autocast(device_type):
        if hidden.dtype != state_dtype(dtype):  # else the operator rounds the rows
            hidden = hidden.to(dtype)
        weight, bias = cast(state_dtype(dtype), weight, bias)
        return OP.run(
            hidden,
            hidden,
            weight,
            target,
            bias,
            dtype,
            float(label_smoothing),
            max_logits,
            may_need_gradient(hidden),
            may_need_gradient(weight),
            may_need_gradient(bias),
            widths=(hidden.shape[1],),
        )[0]


def _fake(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    label_smoothing: float,
    max_logits: int,
    *needs: bool,
) -> tuple[Tensor, ...]:
    needs_d_hidden, needs_d_weight, needs_d_bias = needs
    loss = hidden.new_empty((), dtype=state_dtype(hidden.dtype))
    d_hidden = hidden.new_empty(hidden.shape if needs_d_hidden else 0, dtype=_gradient_dtype(hidden))
    d_weight = weight.new_empty(weight.shape if needs_d_weight else 0)
    return loss, d_hidden, d_weight, weight.new_empty(weight.shape[0] if needs_d_bias else 0)


def _fake_backward(d_loss: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(d) for d in gradients)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *gradients = output
    # Transforms of torch.func compute every gradient so that it can be differentiated again. If it is, the
    # backward gets gradients of the saved gradients and refuses them. Elsewhere, grad mode tells.
    ctx.transformed = is_transformed()
    if not ctx.transformed:
        ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)  # zeros for d_weight would be as large as the table
    ctx.computed, ctx.dtype = inputs[7:], inputs[0].dtype
    ctx.save_for_backward(*gradients)


def _backward_by(
    scale: Callable[..., Sequence[Tensor]], ctx: Any, d_loss: Tensor | None, second: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The saved gradients, multiplied by d_loss with scale(d_loss, *gradients).

    Args:
        second: gradients of the saved gradients.
    """
    if any(d is not None for d in second):
        raise NotImplementedError(f"{OP.name}: {NO_SECOND_DERIVATIVE}")
    if d_loss is None:
        return (None,) * 10
    # With create_graph=True the saved gradients would be constants.
    if torch.is_grad_enabled() and not ctx.transformed:
        raise NotImplementedError(f"{OP.name}: {NO_SECOND_DERIVATIVE}")
    # d_loss is usually 1: on the CPU it is free to read and saves a copy. A traced tensor has no value.
    has_value = type(d_loss) is Tensor and not ctx.transformed
    is_one = has_value and d_loss.device.type == "cpu" and d_loss.item() == 1
    is_one = is_one or hasattr(d_loss, "is_unit_gradient")
    gradients = ctx.saved_tensors if is_one else scale(d_loss, *ctx.saved_tensors)
    d_hidden, d_weight, d_bias = (
        d if computed else None for d, computed in zip(gradients, ctx.computed, strict=True)
    )
    if d_hidden is not None:
        d_hidden = d_hidden.to(ctx.dtype)
    return d_hidden, d_weight, None, d_bias, None, None, None, None, None, None


def _backward(ctx: Any, d_loss: Tensor | None, *second: Tensor | None) -> tuple[Tensor | None, ...]:
    return _backward_by(partial(call_operator, "linear_cross_entropy_backward"), ctx, d_loss, second)


def _backward_by_chunks(ctx: Any, d_loss: Tensor | None, *second: Tensor | None) -> tuple[Tensor | None, ...]:
    return _backward_by(lambda d_loss, *gradients: [d * d_loss for d in gradients], ctx, d_loss, second)


def _flops(
    hidden: Sequence[int],
    weight: Sequence[int],
    target: object,
    bias: object,
    dtype: object,
    label_smoothing: float,
    max_logits: int,
    needs_d_hidden: bool,
    needs_d_weight: bool,
    needs_d_bias: bool,
    **kwargs: Any,
) -> int:
    """2 T D n_items, and as many again for each of d_hidden and d_weight, which the forward computes."""
    return 2 * hidden[0] * math.prod(weight) * (1 + needs_d_hidden + needs_d_weight)


register_operator(
    "linear_cross_entropy",
    fake=_fake,
    setup=_setup,
    backward=_backward,
    fake_backward=_fake_backward,
    flops=_flops,
)
register_operator(
    "linear_cross_entropy_by_chunks", fake=_fake, setup=_setup, backward=_backward_by_chunks, flops=_flops
)
