"""Two linear layers with an activation between them and dropout after each, computed in blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import call_operator, register_operator
from recgrela.ops.checks import (
    autocast_enabled,
    cast,
    cast_for_autocast,
    check_parameters,
    has_half_kernels,
    state_dtype,
)
from recgrela.ops.dropout import check_dropout, dropout_reference, new_seeds
from recgrela.ops.dropout import dropout as drop
from recgrela.ops.support import Kernel, Op

MLPActivation = Literal["none", "relu", "silu", "gelu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
}
OP = Op(
    "mlp",
    {
        "cpu": Kernel((torch.float32, torch.float64)),
        "cuda": Kernel(
            (torch.float32, torch.float16, torch.bfloat16),
            widths=range(32, 257, 16),
            float32_widths=range(32, 129, 16),
        ),
    },
    None,
    "composition",
)


def _drop_hidden(drop: Callable[..., Tensor], h: Tensor, rate: float, seed: Tensor | None) -> Tensor:
    """Dropout of the hidden layer, whose rows it fills up to a multiple of 16 columns.

    Two elements of a kernel's tile then have the same hash.
    """
    width = h.shape[1]
    if rate == 0 or width % 16 == 0:
        return drop(h, rate, seed)
    return drop(F.pad(h, (0, -width % 16)), rate, seed)[:, :width]


def mlp_reference(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    activation: MLPActivation = "gelu",
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """The definition of `mlp` in plain PyTorch; without a seed there is no dropout."""
    h = ACTIVATIONS[activation](F.linear(x, w1, b1))
    if seed is None:
        return F.linear(h, w2, b2)
    h = _drop_hidden(dropout_reference, h, dropout, seed[0])
    return dropout_reference(F.linear(h, w2, b2), dropout, seed[1])


def mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    activation: MLPActivation = "gelu",
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """drop(drop(act(x @ w1.T + b1)) @ w2.T + b2).

    The kernels never write the hidden layer [T, F] to memory: the backward recomputes it from `x`, the only
    tensor of T rows that is saved. Under autocast on the CPU, and where no kernel takes the operands,
    PyTorch's linear layers run. The CUDA kernels take any F; they compute float32 products as sums of bf16
    products, with the accuracy of float32.

    Args:
        x: [T, I], any row stride, any floating dtype. Autocast on CUDA converts it to its dtype.
        w1, b1: [F, I], [F].
        w2, b2: [O, F], [O]. Weights and biases have the dtype of `x`, or float32 if that is half precision:
            the operator takes float32, rounds the weights itself and returns float32 gradients.
        activation: "none", "relu", "silu" or "gelu" (the exact one, by erf).
        dropout: rate of both dropouts, as for `recgrela.ops.dropout`.
        seed: [2] int64, one for each dropout; None draws them from PyTorch's generator.

    Returns:
        [T, O], of the dtype of `x`, or of autocast if it is enabled.

    Raises:
        ValueError: if a shape or device, the activation or the rate is wrong; TypeError: if a dtype is.
        NotImplementedError: for second derivatives of the kernel; use `mlp_reference`.
    """
    op = OP.name
    if activation not in get_args(MLPActivation):
        names = ", ".join(get_args(MLPActivation))
        raise ValueError(f"{op}: activation must be one of {names}, got {activation!r}")
    if x.dim() != 2 or w1.dim() != 2 or w2.dim() != 2 or 0 in (x.shape[1], *w1.shape, *w2.shape):
        raise ValueError(
            f"{op}: x must be [T, I], w1 [F, I] and w2 [O, F] with widths above 0, got {tuple(x.shape)}, "
            f"{tuple(w1.shape)} and {tuple(w2.shape)}"
        )
    hidden = w1.shape[0]
    check_parameters(
        op,
        "x",
        x,
        w1=(w1, ("F", x.shape[1])),
        b1=(b1, (hidden,)),
        w2=(w2, ("O", hidden)),
        b2=(b2, (w2.shape[0],)),
    )
    check_dropout(op, dropout, seed, 2, x.device)
    device_type = x.device.type
    if has_half_kernels(device_type):
        (x,) = cast_for_autocast(device_type, x)
    widths = (x.shape[1], w2.shape[0])
    composition = OP.implementation(device_type, x.dtype, widths=widths).kind != "kernel"
    if composition or (autocast_enabled(device_type) and not has_half_kernels(device_type)):
        w1, b1, w2, b2 = cast(x.dtype, w1, b1, w2, b2)
        seeds = (None, None) if seed is None else seed.unbind()
        h = _drop_hidden(drop, ACTIVATIONS[activation](F.linear(x, w1, b1)), dropout, seeds[0])
        return drop(F.linear(h, w2, b2), dropout, seeds[1])
    if not dropout:
        seed = None
    elif seed is None:
        seed = new_seeds(2, x.device)
    w1, b1, w2, b2 = cast(state_dtype(x.dtype), w1, b1, w2, b2)
    return OP.run(x, x, w1, b1, w2, b2, seed, activation, float(dropout), widths=widths)


def _fake(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, *args: Any) -> Tensor:
    return x.new_empty(x.shape[0], w2.shape[0])


def _fake_backward(d_y: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in args[:5])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation, ctx.rate = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
    gradients = call_operator("mlp_backward", d_y, *ctx.saved_tensors, ctx.activation, ctx.rate)
    return *gradients, None, None, None


def _flops(
    x: Sequence[int], w1: Sequence[int], b1: object, w2: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    """4 T D F, for T rows of width D and a hidden layer of width F."""
    return 2 * x[0] * (math.prod(w1) + math.prod(w2))


register_operator(
    "mlp", fake=_fake, setup=_setup, backward=_backward, fake_backward=_fake_backward, flops=_flops
)
