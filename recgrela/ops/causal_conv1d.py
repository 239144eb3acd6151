"""Depthwise causal convolution with bias and SiLU over packed sequences."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import no_second_derivative, skip_setup
from recgrela.ops.checks import (
    cast_for_autocast,
    check_cu_seqlens,
    check_devices,
    check_operands,
    number_of_taps,
    sequences_of,
    to_rows,
)

Activation = Literal["silu"] | None


CUDA_MOST_TAPS = 4


def last_values(x: Tensor, n: int, cu_seqlens: Tensor, initial_values: Tensor | None = None) -> Tensor:
    """[B, n, C], the last n rows of each sequence of x [T, C], from the oldest on.

    Rows before a sequence's first are those of `initial_values` [B, n, C], or zero.
    """
    parts = x.split(cu_seqlens.diff().tolist())
    before = x.new_zeros(len(parts), n, x.shape[1]) if initial_values is None else initial_values
    rows = [torch.cat([b, part])[len(part) :] for b, part in zip(before, parts, strict=True)]
    return torch.stack(rows) if rows else before


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    activation: Activation = "silu",
    initial_values: Tensor | None = None,
    return_final_values: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition of `causal_conv1d` in plain PyTorch, on packed rows."""
    history = weight.shape[1] - 1
    parts = x.split(cu_seqlens.diff().tolist())
    before = x.new_zeros(len(parts), history, x.shape[1]) if initial_values is None else initial_values
    outs = []
    for rows, rows_before in zip(parts, before, strict=True):
        padded = torch.cat([rows_before, rows]).T[None]  # [1, C, K - 1 + n]
        outs.append(F.conv1d(padded, weight[:, None], bias, groups=x.shape[1])[0].T if len(rows) else rows)
    y = torch.cat(outs) if outs else x
    y = F.silu(y) if activation == "silu" else y
    return (y, last_values(x, history, cu_seqlens, initial_values)) if return_final_values else y


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    activation: Activation = ...,
    initial_values: Tensor | None = ...,
    return_final_values: Literal[False] = ...,
) -> Tensor: ...
@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    activation: Activation = ...,
    initial_values: Tensor | None = ...,
    *,
    return_final_values: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    activation: Activation = "silu",
    initial_values: Tensor | None = None,
    return_final_values: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """y_i = act(bias + sum_w weight[:, w] * x_{i-K+1+w}) within each sequence, zero before its start.

    Args:
        x: [T, C] rows of all sequences end to end, or [B, L, C] of equal lengths with `cu_seqlens` None.
            Any row stride; float32 or float64 on the CPU; float32, float16 or bfloat16 on CUDA, computed in
            float32.
        weight: [C, K], of the dtype and device of `x`, on CUDA of up to 4 taps; the last meets the current
            row.
        bias: [C] or None.
        cu_seqlens: int32 or int64 [B + 1] on the device of `x`: sequence b is rows
            cu_seqlens[b] .. cu_seqlens[b + 1].
        activation: "silu" or None.
        initial_values: [B, K - 1, C], the rows before each sequence, oldest first; None: zeros.
        return_final_values: also return the last K - 1 rows of each sequence, to begin the next part from.

    Returns:
        A tensor of the shape and dtype of `x`; with `return_final_values` also [B, K - 1, C].

    Raises:
        TypeError, ValueError: on operands that do not fit, with their names.
        RuntimeError: on a cu_seqlens that does not start at 0, decreases or does not end at T (on CUDA a
            device-side assertion, which a later call reports).
    """
    if activation not in ("silu", None):
        raise ValueError(f"causal_conv1d: activation must be 'silu' or None, got {activation!r}")
    op, shape = "causal_conv1d", x.shape
    cu_seqlens = sequences_of(op, "x", x, cu_seqlens)
    check_cu_seqlens(op, cu_seqlens, x)
    channels = shape[-1]
    taps = number_of_taps(op, "weight", weight, channels)
    if x.is_cuda and taps > CUDA_MOST_TAPS:
        raise ValueError(f"{op}: on cuda weight has at most {CUDA_MOST_TAPS} taps, got {taps}")
    x, weight, bias, initial_values = cast_for_autocast(  # type: ignore[assignment]
        x.device.type, x, weight, bias, initial_values
    )
    check_operands(
        op,
        "x",
        x,
        weight=(weight, (channels, "K")),
        bias=(bias, (channels,)),
        initial_values=(initial_values, (cu_seqlens.shape[0] - 1, taps - 1, channels)),
    )
    y, values = torch.ops.recgrela.causal_conv1d(
        to_rows(x), weight, bias, cu_seqlens, initial_values, activation == "silu", return_final_values
    )
    return (y.view(shape), values) if return_final_values else y.view(shape)


@torch.library.register_fake("recgrela::causal_conv1d")
def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_values: Tensor | None,
    silu: bool,
    return_final_values: bool,
) -> tuple[Tensor, Tensor]:
    check_devices("causal_conv1d", x, weight, bias, cu_seqlens, initial_values)
    channels, taps = weight.shape
    values = (cu_seqlens.shape[0] - 1, taps - 1, channels) if return_final_values else (0,)
    return x.new_empty(x.shape), x.new_empty(values)


@torch.library.register_fake("recgrela::causal_conv1d_backward")
def _fake_backward(
    dy: Tensor,
    d_values: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_values: Tensor | None,
    silu: bool,
) -> tuple[Tensor, ...]:
    check_devices("causal_conv1d_backward", dy, d_values, x, weight, bias, cu_seqlens, initial_values)
    return tuple(x.new_empty(0 if t is None else t.shape) for t in (x, weight, bias, initial_values))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.silu, ctx.has_values = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, d_values: Tensor | None) -> tuple[Tensor | None, ...]:
    x, _, bias, _, initial_values = ctx.saved_tensors
    dx, dw, db, d_initial = torch.ops.recgrela.causal_conv1d_backward(
        torch.zeros_like(x) if dy is None else dy,
        d_values if ctx.has_values else None,
        *ctx.saved_tensors,
        ctx.silu,
    )
    db = None if bias is None else db
    return dx, dw, db, None, None if initial_values is None else d_initial, None, None


torch.library.register_autograd("recgrela::causal_conv1d", _backward, setup_context=_setup)
torch.library.register_autograd(
    "recgrela::causal_conv1d_backward", no_second_derivative, setup_context=skip_setup
)
