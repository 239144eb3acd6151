"""Depthwise causal convolution with bias and SiLU over packed sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import call_operator, register_operator
from recgrela.ops.checks import (
    cast_for_autocast,
    cast_parameters,
    check_operands,
    gradient_like,
    kernel_size_of,
    lengths_of,
    none_for_absent,
    offsets_of,
    state_dtype,
    to_rows,
    with_shape,
)
from recgrela.ops.support import Kernel, Op

Activation = Literal["silu"] | None


def last_rows(x: Tensor, n: int, cu_seqlens: Tensor, initial_history: Tensor | None = None) -> Tensor:
    """The last n rows of each sequence of x [T, C], oldest first: [B, n, C].

    Rows before a sequence's first are those of `initial_history` [B, n, C], or zero.
    """
    sequences = x.split(lengths_of("causal_conv1d", cu_seqlens, x.shape[0]))
    history = x.new_zeros(len(sequences), n, x.shape[1]) if initial_history is None else initial_history
    rows = [torch.cat([h, sequence])[len(sequence) :] for h, sequence in zip(history, sequences, strict=True)]
    return torch.stack(rows) if rows else history


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    activation: Activation = "silu",
    initial_history: Tensor | None = None,
    return_final_history: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition of `causal_conv1d` in plain PyTorch, on packed rows."""
    n = weight.shape[1] - 1
    sequences = x.split(lengths_of("causal_conv1d", cu_seqlens, x.shape[0]))
    history = x.new_zeros(len(sequences), n, x.shape[1]) if initial_history is None else initial_history
    outs = []
    for rows, rows_before in zip(sequences, history, strict=True):
        padded = torch.cat([rows_before, rows]).to(weight.dtype).T[None]  # [1, C, K - 1 + length]
        if len(rows):
            outs.append(F.conv1d(padded, weight[:, None], bias, groups=x.shape[1])[0].T)
    y = torch.cat(outs) if outs else x
    y = (F.silu(y) if activation == "silu" else y).to(x.dtype)
    return (y, last_rows(x, n, cu_seqlens, initial_history)) if return_final_history else y


def _by_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_history: Tensor | None,
    silu: bool,
    return_final_history: bool,
) -> Any:
    activation: Activation = "silu" if silu else None
    out = causal_conv1d_reference(
        x, weight, bias, cu_seqlens, activation, initial_history, return_final_history
    )
    return out if return_final_history else (out, None)


OP = Op(
    "causal_conv1d",
    {
        "cpu": Kernel((torch.float32, torch.float64)),
        "cuda": Kernel((torch.float32, torch.float16, torch.bfloat16), max_kernel_size=4),
    },
    _by_reference,
    outputs_like_operands=(0, 1),
)


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    activation: Activation = ...,
    initial_history: Tensor | None = ...,
    return_final_history: Literal[False] = ...,
) -> Tensor: ...
@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    activation: Activation = ...,
    initial_history: Tensor | None = ...,
    *,
    return_final_history: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    activation: Activation = "silu",
    initial_history: Tensor | None = None,
    return_final_history: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal depthwise convolution: y_i = act(bias + sum_w weight[:, w] * x_{i-K+1+w}) in each sequence.

    Rows before the start of a sequence are those of `initial_history`, or zero.

    Args:
        x: [T, C], the rows of all sequences end to end, or [B, L, C], sequences of equal length with
            `cu_seqlens` None. Any row stride, any floating dtype.
        weight: [C, K], float64 for float64 rows, else float32; half precision is converted, and autocast
            does not convert it. The last column multiplies the current row.
        bias: [C] of the dtype of `weight`, or None.
        cu_seqlens: int32 or int64 [B + 1] on the device of `x`: sequence b is rows
            cu_seqlens[b] : cu_seqlens[b + 1]. An empty sequence has no rows, and its final history is the
            initial one.
        activation: "silu" or None.
        initial_history: [B, K - 1, C], the rows before each sequence, oldest first; None: zeros.
        return_final_history: also return the last K - 1 rows of each sequence, the initial history of the
            next chunk.

    Returns:
        A tensor of the shape and dtype of `x`; with `return_final_history` also [B, K - 1, C].

    Raises:
        TypeError, ValueError: if an operand has a wrong shape, dtype or device; the message names it.
        RuntimeError: if cu_seqlens does not start at 0, decreases or does not end at T. On CUDA this is a
            device-side assertion, which a later call reports.
        NotImplementedError: for second derivatives; use `causal_conv1d_reference`.
    """
    op, shape = OP.name, x.shape
    if activation not in ("silu", None):
        raise ValueError(f"{op}: activation must be 'silu' or None, got {activation!r}")
    cu_seqlens = offsets_of(op, "x", x, cu_seqlens)
    channels = shape[-1]
    kernel_size = kernel_size_of(op, "weight", weight, channels)
    x, initial_history = cast_for_autocast(x.device.type, x, initial_history)
    dtype = state_dtype(x.dtype)
    weight, bias = cast_parameters(dtype, weight, bias)
    check_operands(
        op,
        "x",
        x,
        weight=(weight, (channels, "K"), dtype),
        bias=(bias, (channels,), dtype),
        initial_history=(initial_history, (cu_seqlens.shape[0] - 1, kernel_size - 1, channels)),
    )
    silu = activation == "silu"
    args = (to_rows(x), weight, bias, cu_seqlens, initial_history, silu, return_final_history)
    y, history = OP.run(x, *args, kernel_size=kernel_size)
    return (with_shape(y, shape), history) if return_final_history else with_shape(y, shape)


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_history: Tensor | None,
    silu: bool,
    return_final_history: bool,
) -> tuple[Tensor, Tensor]:
    channels, kernel_size = weight.shape
    history = (cu_seqlens.shape[0] - 1, kernel_size - 1, channels) if return_final_history else (0,)
    return x.new_empty(x.shape), x.new_empty(history)


def _fake_backward(
    d_y: Tensor,
    d_final_history: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_history: Tensor | None,
    silu: bool,
) -> tuple[Tensor, ...]:
    return tuple(gradient_like(t, x) for t in (x, weight, bias, initial_history))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.silu, ctx.returns_history = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_y: Tensor | None, d_final_history: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # checkpointing unpacks them once
    x, weight, bias, _, initial_history = saved
    gradients = call_operator(
        "causal_conv1d_backward",
        torch.zeros_like(x) if d_y is None else d_y,
        d_final_history if ctx.returns_history else None,
        *saved,
        ctx.silu,
    )
    d_x, d_weight, d_bias, d_initial_history = none_for_absent(gradients, (x, weight, bias, initial_history))
    return d_x, d_weight, d_bias, None, d_initial_history, None, None


def _flops(x: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """2 T C K."""
    return 2 * x[0] * math.prod(weight)


register_operator(
    "causal_conv1d",
    fake=_fake,
    setup=_setup,
    backward=_backward,
    fake_backward=_fake_backward,
    flops=_flops,
)
