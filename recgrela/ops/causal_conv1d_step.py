"""`causal_conv1d` of one more row of each sequence; the history is updated in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import register_in_place
from recgrela.ops.causal_conv1d import Activation
from recgrela.ops.checks import (
    cast_for_autocast,
    cast_parameters,
    check_operands,
    check_state,
    kernel_size_of,
    refuse_gradients,
    state_dtype,
)
from recgrela.ops.support import Kernel, Op


def causal_conv1d_step_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor, activation: Activation = "silu"
) -> Tensor:
    """The definition of `causal_conv1d_step` in plain PyTorch."""
    y = convolve_next(x, weight, bias, history)
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)


def convolve_next(x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor) -> Tensor:
    """The convolution of the next rows, in the dtype of `weight`; moves them into the history."""
    window = torch.cat([history, x[:, None]], dim=1)  # [B, K, C]
    y = (window.to(weight.dtype) * weight.T).sum(1)
    history.copy_(window[:, 1:])
    return y if bias is None else y + bias


def _by_reference(x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor, silu: bool) -> Tensor:
    return causal_conv1d_step_reference(x, weight, bias, history, "silu" if silu else None)


OP = Op(
    "causal_conv1d_step",
    {
        "cpu": Kernel((torch.float32, torch.float64)),
        "cuda": Kernel((torch.float32, torch.float16, torch.bfloat16)),
    },
    _by_reference,
    "composition",
    in_place=(3,),
)


def causal_conv1d_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor, activation: Activation = "silu"
) -> Tensor:
    """`causal_conv1d` of the next row of each sequence, whose last rows are in `history`.

    It costs the same after any number of rows. The row becomes the last one of the history, in place.

    Args:
        x: [B, C], one row of each sequence; any floating dtype.
        weight: [C, K], float64 for float64 rows, else float32; half precision is converted.
        bias: [C] of the dtype of `weight`, or None.
        history: [B, K - 1, C] of the dtype of `x`, the rows before it, oldest first, as `causal_conv1d`
            returns them. It is updated in place; it is contiguous, but sequences may be any distance apart.
        activation: "silu" or None.

    Returns:
        y of the shape and dtype of `x`.

    Raises:
        TypeError, ValueError: if an operand has a wrong shape, dtype, stride or device; the message names it.
        NotImplementedError: if a gradient is needed; use `causal_conv1d` with `initial_history`.
    """
    op = OP.name
    if activation not in ("silu", None):
        raise ValueError(f"{op}: activation must be 'silu' or None, got {activation!r}")
    if x.dim() != 2:
        raise ValueError(f"{op}: x must be [B, C], got shape {tuple(x.shape)}")
    batch, channels = x.shape
    kernel_size = kernel_size_of(op, "weight", weight, channels)
    refuse_gradients(op, "causal_conv1d with initial_history", x, weight, bias, history)
    (x,) = cast_for_autocast(x.device.type, x)
    dtype = state_dtype(x.dtype)
    weight, bias = cast_parameters(dtype, weight, bias)
    check_operands(
        op,
        "x",
        x,
        weight=(weight, (channels, "K"), dtype),
        bias=(bias, (channels,), dtype),
        history=(history, (batch, kernel_size - 1, channels)),
    )
    check_state(op, "history", history)
    rows = history if history.dtype == x.dtype else history.to(x.dtype)  # under autocast
    y: Tensor = OP.run(x, x, weight, bias, rows, activation == "silu", kernel_size=kernel_size)
    if rows is not history:
        history.copy_(rows)
    return y


def _fake(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(x.shape)


def _flops(x: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """2 B C K."""
    return 2 * x[0] * math.prod(weight)


register_in_place("causal_conv1d_step", fake=_fake, flops=_flops)
