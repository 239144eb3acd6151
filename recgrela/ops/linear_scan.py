"""A first-order linear recurrence in each channel over packed sequences, real or complex."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from recgrela.ops._library import no_second_derivative, skip_setup
from recgrela.ops.checks import (
    autocast_enabled,
    check_cu_seqlens,
    check_devices,
    check_operands,
    sequences_of,
    state_dtype,
    to_rows,
)

SCAN_DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.complex64, torch.complex128),
    "cuda": (torch.float32, torch.float16, torch.bfloat16, torch.complex64),
}


def linear_scan_reference(
    x: Tensor,
    a: Tensor,
    cu_seqlens: Tensor,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition of `linear_scan` in plain PyTorch, on packed rows."""
    lengths, channels = cu_seqlens.diff().tolist(), x.shape[1]
    before = a.new_zeros(len(lengths), channels) if initial_state is None else initial_state
    outs, finals = [], []
    coefficients = a.expand(x.shape[0], channels) if a.dim() == 1 else a
    for rows, steps, state in zip(x.split(lengths), coefficients.split(lengths), before, strict=True):
        for row, step in zip(rows, steps, strict=True):
            state = step * state + row
            outs.append(state)
        finals.append(state)
    h = torch.stack(outs).to(x.dtype) if outs else x.clone()
    if not return_state:
        return h
    return h, torch.stack(finals) if finals else before


@overload
def linear_scan(
    x: Tensor,
    a: Tensor,
    cu_seqlens: Tensor | None = ...,
    *,
    initial_state: Tensor | None = ...,
    return_state: Literal[False] = ...,
) -> Tensor: ...
@overload
def linear_scan(
    x: Tensor,
    a: Tensor,
    cu_seqlens: Tensor | None = ...,
    *,
    initial_state: Tensor | None = ...,
    return_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def linear_scan(
    x: Tensor,
    a: Tensor,
    cu_seqlens: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """h_i = a_i h_{i-1} + x_i in each channel within each sequence, from zero or a state before its start.

    The recurrence of LRU (constant complex a; arXiv 2303.06349) and of gated linear recurrences (real a_i of
    each step). Any length, without padding; the backward is deterministic.

    Args:
        x: [T, C] rows of all sequences end to end, or [B, L, C] of equal lengths with `cu_seqlens` None. Any
            row stride. On the CPU float32, float64, complex64 or complex128; on CUDA float32, float16,
            bfloat16 or complex64. Under autocast real halves become float32: coefficients near 1 do not
            survive rounding.
        a: [C], the same at every step, or of the shape of `x`; of the dtype of `x`, but float32 for halves.
        cu_seqlens: int32 or int64 [B + 1] on the device of `x`: sequence b is rows
            cu_seqlens[b] .. cu_seqlens[b + 1].
        initial_state: [B, C] of the dtype of `a`, h before each sequence; None: zeros.
        return_state: also return h behind each sequence, before it is rounded to the dtype of `x`.

    Returns:
        h of the shape and dtype of `x`; with `return_state` also [B, C] of the dtype of `a`.

    Raises:
        TypeError, ValueError: on operands that do not fit, with their names.
        RuntimeError: on a cu_seqlens that does not start at 0, decreases or does not end at T (on CUDA a
            device-side assertion, which a later call reports).
        NotImplementedError: from a second derivative; use `linear_scan_reference`.
    """
    op, shape = "linear_scan", x.shape
    cu_seqlens = sequences_of(op, "x", x, cu_seqlens)
    check_cu_seqlens(op, cu_seqlens, x)
    if autocast_enabled(x.device.type) and not x.is_complex() and x.dtype != torch.float64:
        x, a = x.float(), a.float()
        initial_state = None if initial_state is None else initial_state.float()
    taken = SCAN_DTYPES.get(x.device.type, (x.dtype,))
    if x.dtype not in taken:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in taken)
        raise TypeError(f"{op}: on {x.device.type} x must be {names}, got {x.dtype}")
    channels, dtype = shape[-1], scan_state_dtype(x.dtype)
    check_operands(
        op,
        "x",
        x,
        any_float=True,
        complex_too=True,
        a=(a, (channels,) if a.dim() == 1 else tuple(shape), dtype),
        initial_state=(initial_state, (cu_seqlens.shape[0] - 1, channels), dtype),
    )
    a = a if a.dim() == 1 else to_rows(a)
    h, state = torch.ops.recgrela.linear_scan(to_rows(x), a, cu_seqlens, initial_state, return_state)
    return (h.view(shape), state) if return_state else h.view(shape)


def scan_state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the coefficients and states that go with x of `dtype`."""
    return dtype if dtype.is_complex else state_dtype(dtype)


@torch.library.register_fake("recgrela::linear_scan")
def _fake(
    x: Tensor, a: Tensor, cu_seqlens: Tensor, initial_state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor]:
    check_devices("linear_scan", x, a, cu_seqlens, initial_state)
    state = (cu_seqlens.shape[0] - 1, x.shape[1]) if return_state else (0,)
    return x.new_empty(x.shape), x.new_empty(state, dtype=scan_state_dtype(x.dtype))


@torch.library.register_fake("recgrela::linear_scan_backward")
def _fake_backward(
    dh: Tensor,
    d_state: Tensor | None,
    a: Tensor,
    cu_seqlens: Tensor,
    initial_state: Tensor | None,
    h: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    check_devices("linear_scan_backward", dh, d_state, a, cu_seqlens, initial_state, h)
    initial = (0,) if initial_state is None else initial_state.shape
    return h.new_empty(h.shape), a.new_empty(a.shape), a.new_empty(initial)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, a, cu_seqlens, initial_state, ctx.has_state = inputs
    ctx.save_for_backward(a, cu_seqlens, initial_state, output[0])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dh: Tensor | None, d_state: Tensor | None) -> tuple[Tensor | None, ...]:
    a, cu_seqlens, initial_state, h = ctx.saved_tensors
    dx, da, d_initial = torch.ops.recgrela.linear_scan_backward(
        torch.zeros_like(h) if dh is None else dh,
        d_state if ctx.has_state else None,
        a,
        cu_seqlens,
        initial_state,
        h,
    )
    return dx, da, None, None if initial_state is None else d_initial, None


torch.library.register_autograd("recgrela::linear_scan", _backward, setup_context=_setup)
torch.library.register_autograd(
    "recgrela::linear_scan_backward", no_second_derivative, setup_context=skip_setup
)
