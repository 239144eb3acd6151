"""Cross-entropy of a linear layer's scores, without holding the scores of all rows at once."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import NO_SECOND_DERIVATIVE
from recgrela.ops.checks import autocast_enabled, check_devices, check_operands

# Scores held at a time. On a CPU four MiB in float32, which stay in its caches from one product to the next;
# on a GPU 256 MiB, so that each product is large.
MAX_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}
NO_INDEX = -(1 << 62)  # for torch's cross-entropy, which insists on an index to ignore


def max_logits_of(device_type: str) -> int:
    """Scores held at a time on such a device, unless told otherwise."""
    return MAX_LOGITS.get(device_type, MAX_LOGITS["cpu"])


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, target: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """The definition of `linear_cross_entropy` in plain PyTorch."""
    scores = hidden @ weight.T
    return F.cross_entropy(scores, target, ignore_index=NO_INDEX, label_smoothing=label_smoothing)


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in a wider dtype, which half-precision operands are summed in but not rounded to theirs."""
    if a.dtype == dtype:
        return a @ b
    return torch.mm(a, b, out_dtype=dtype) if a.is_cuda else a.to(dtype) @ b.to(dtype)


def _chunked(
    hidden: Tensor, weight: Tensor, target: Tensor, max_logits: int, hidden_grad: bool, weight_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The op in plain PyTorch: the gradients are made chunk by chunk, while the scores are at hand."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    rows = min(max(1, max_logits // weight.shape[0]), hidden.shape[0])
    loss = hidden.new_zeros((), dtype=wide)
    d_hidden = torch.empty_like(hidden) if hidden_grad else hidden.new_empty(0)
    d_weight = weight.new_zeros(weight.shape, dtype=wide) if weight_grad else weight.new_empty(0)
    for start in range(0, hidden.shape[0], rows):
        h, t = hidden[start : start + rows], target[start : start + rows, None]
        scores = _product(h, weight.T, wide)
        log_sum = scores.logsumexp(1, keepdim=True)
        loss += (log_sum - scores.gather(1, t)).sum()
        if not (hidden_grad or weight_grad):
            continue
        p = (scores - log_sum).exp_().scatter_add_(1, t, scores.new_full(t.shape, -1.0)).to(hidden.dtype)
        if hidden_grad:
            d_hidden[start : start + rows] = p @ weight
        if weight_grad:
            d_weight += _product(p.T, h, wide)
    n = hidden.shape[0]
    return loss / n, d_hidden / n, (d_weight / n).to(weight.dtype)


torch.library.impl("recgrela::linear_cross_entropy", "CUDA")(_chunked)


@torch.library.register_fake("recgrela::linear_cross_entropy")
def _fake(
    hidden: Tensor, weight: Tensor, target: Tensor, max_logits: int, hidden_grad: bool, weight_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    check_devices("linear_cross_entropy", hidden, weight, target)
    loss = hidden.new_empty((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    d_hidden = hidden.new_empty(hidden.shape if hidden_grad else 0)
    return loss, d_hidden, weight.new_empty(weight.shape if weight_grad else 0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, d_hidden, d_weight = output
    ctx.mark_non_differentiable(d_hidden, d_weight)
    ctx.set_materialize_grads(False)  # the unused one of d_weight would be as large as the table
    ctx.grads = inputs[4:]
    ctx.save_for_backward(d_hidden, d_weight)


def _backward(ctx: Any, d_loss: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
    if d_loss is None:
        return (None,) * 6
    if torch.is_grad_enabled():  # with create_graph: the saved gradients would count as constants
        raise NotImplementedError(NO_SECOND_DERIVATIVE)
    # Mostly 1, which costs nothing to know on the CPU: no copy then. While tracing there is no value.
    is_one = type(d_loss) is Tensor and d_loss.device.type == "cpu" and d_loss.item() == 1
    made = zip(ctx.saved_tensors, ctx.grads, strict=True)
    grads = ((d if is_one else d * d_loss.to(d.dtype)) if there else None for d, there in made)
    return *grads, None, None, None, None


torch.library.register_autograd("recgrela::linear_cross_entropy", _backward, setup_context=_setup)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    max_logits: int | None = None,
) -> Tensor:
    """Mean cross-entropy of the scores `hidden @ weight.T`, never holding more than `max_logits` of them.

    Args:
        hidden: [T, D] floating point, T > 0.
        weight: [n_items, D], of one dtype with `hidden`.
        target: [T] int64, each 0 .. n_items - 1.
        label_smoothing: the share of the target's probability that goes to all items alike, within 0 .. 1.
        max_logits: scores held at a time, but at least 48 rows by two vectors of items on the CPU,
            and one row elsewhere. None: `MAX_LOGITS` of the device.

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
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{op}: label_smoothing must be within 0 .. 1, got {label_smoothing}")
    if max_logits is None:
        max_logits = max_logits_of(hidden.device.type)
    if max_logits < 1:
        raise ValueError(f"{op}: max_logits must be at least 1, got {max_logits}")
    check_operands(op, "hidden", hidden, any_float=True, weight=(weight, ("n_items", hidden.shape[1])))
    if target.dtype != torch.int64:
        raise TypeError(f"{op}: target must be int64, got {target.dtype}")
    if target.shape != hidden.shape[:1]:
        raise ValueError(f"{op}: target must be [{len(hidden)}], got shape {tuple(target.shape)}")
    device_type, dtype = hidden.device.type, hidden.dtype
    autocast = autocast_enabled(device_type)
    if autocast and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
    if device_type == "cpu" and dtype != torch.float64:
        dtype = torch.float32
    with_grad = torch.is_grad_enabled()
    with torch.autocast(device_type, enabled=False) if autocast else nullcontext():
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        loss, _, _ = torch.ops.recgrela.linear_cross_entropy(
            hidden,
            weight,
            target,
            max_logits,
            with_grad and hidden.requires_grad,
            with_grad and weight.requires_grad,
        )
        if label_smoothing:  # log Z - (1 - a) s[target] - a mean(s), the mean of all scores being one product
            away = F.embedding(target, weight) - weight.mean(0, dtype=loss.dtype)
            loss = loss + label_smoothing * (hidden.to(loss.dtype) * away).sum(1).mean()
    return loss
