"""A first-order linear recurrence in each channel over packed sequences, real or complex."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from recgrela.ops._library import call_operator, register_operator
from recgrela.ops.checks import (
    COMPLEX,
    FLOATS,
    autocast_enabled,
    cast,
    check_operands,
    gradient_like,
    lengths_of,
    offsets_of,
    state_dtype,
    to_rows,
    with_shape,
)
from recgrela.ops.support import Kernel, Op


def linear_scan_reference(
    x: Tensor,
    a: Tensor,
    cu_seqlens: Tensor,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition of `linear_scan` in plain PyTorch, on packed rows."""
    lengths, channels = lengths_of("linear_scan", cu_seqlens, x.shape[0]), x.shape[1]
    states = a.new_zeros(len(lengths), channels) if initial_state is None else initial_state
    coefficients = a.expand(x.shape[0], channels) if a.dim() == 1 else a
    outs, finals = [], []
    for rows, steps, state in zip(x.split(lengths), coefficients.split(lengths), states, strict=True):
        for row, step in zip(rows, steps, strict=True):
            state = step * state + row
            outs.append(state)
        finals.append(state)
    h = torch.stack(outs).to(x.dtype) if outs else x.clone()
    if not return_state:
        return h
    return h, torch.stack(finals) if finals else states


def _by_reference(
    x: Tensor, a: Tensor, cu_seqlens: Tensor, initial_state: Tensor | None, return_state: bool
) -> Any:
    out = linear_scan_reference(x, a, cu_seqlens, initial_state, return_state)
    return out if return_state else (out, None)


OP = Op(
    "linear_scan",
    {
        "cpu": Kernel((torch.float32, torch.float64, torch.complex64, torch.complex128)),
        "cuda": Kernel((torch.float32, torch.float16, torch.bfloat16, torch.complex64)),
    },
    _by_reference,
)


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
    """h_i = a_i h_{i-1} + x_i in each channel within each sequence, from zero or an initial state.

    The recurrence of LRU (constant complex a; arXiv 2303.06349) and of gated linear recurrences (a real a_i
    for each step). Sequences have any length and need no padding; the backward is deterministic.

    Args:
        x: [T, C], the rows of all sequences end to end, or [B, L, C], sequences of equal length with
            `cu_seqlens` None. Any row stride; any floating dtype, complex64 or complex128. Autocast converts
            half precision to float32, because rounding coefficients near 1 would change the result too much.
        a: [C], the same at every step, or of the shape of `x`; of the dtype of `x`, but float32 for half
            precision.
        cu_seqlens: int32 or int64 [B + 1] on the device of `x`: sequence b is rows
            cu_seqlens[b] : cu_seqlens[b + 1]. An empty sequence has no rows, and the state after it is the
            initial one.
        initial_state: [B, C] of the dtype of `a`, h before each sequence; None: zeros.
        return_state: also return h after each sequence, before it is rounded to the dtype of `x`.

    Returns:
        h of the shape and dtype of `x`; with `return_state` also [B, C] of the dtype of `a`.

    Raises:
        TypeError, ValueError: if an operand has a wrong shape, dtype or device; the message names it.
        RuntimeError: if cu_seqlens does not start at 0, decreases or does not end at T. On CUDA this is a
            device-side assertion, which a later call reports.
        NotImplementedError: for second derivatives; use `linear_scan_reference`.
    """
    op, shape = OP.name, x.shape
    cu_seqlens = offsets_of(op, "x", x, cu_seqlens)
    if autocast_enabled(x.device.type) and not x.is_complex() and x.dtype != torch.float64:
        x, a, initial_state = cast(torch.float32, x, a, initial_state)
    channels, dtype = shape[-1], scan_state_dtype(x.dtype)
    check_operands(
        op,
        "x",
        x,
        FLOATS + COMPLEX,
        a=(a, (channels,) if a.dim() == 1 else tuple(shape), dtype),
        initial_state=(initial_state, (cu_seqlens.shape[0] - 1, channels), dtype),
    )
    a = a if a.dim() == 1 else to_rows(a)
    h, state = OP.run(x, to_rows(x), a, cu_seqlens, initial_state, return_state)
    return (with_shape(h, shape), state) if return_state else with_shape(h, shape)


def scan_state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the coefficients and states for x of `dtype`."""
    return dtype if dtype.is_complex else state_dtype(dtype)


def _fake(
    x: Tensor, a: Tensor, cu_seqlens: Tensor, initial_state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor]:
    state = (cu_seqlens.shape[0] - 1, x.shape[1]) if return_state else (0,)
    return x.new_empty(x.shape), x.new_empty(state, dtype=scan_state_dtype(x.dtype))


def _fake_backward(
    d_h: Tensor,
    d_final_state: Tensor | None,
    a: Tensor,
    cu_seqlens: Tensor,
    initial_state: Tensor | None,
    h: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return gradient_like(h, h), gradient_like(a, a), gradient_like(initial_state, a)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, a, cu_seqlens, initial_state, ctx.returns_state = inputs
    ctx.save_for_backward(a, cu_seqlens, initial_state, output[0])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_h: Tensor | None, d_final_state: Tensor | None) -> tuple[Tensor | None, ...]:
    a, cu_seqlens, initial_state, h = ctx.saved_tensors
    d_x, d_a, d_initial_state = call_operator(
        "linear_scan_backward",
        torch.zeros_like(h) if d_h is None else d_h,
        d_final_state if ctx.returns_state else None,
        a,
        cu_seqlens,
        initial_state,
        h,
    )
    return d_x, d_a, None, None if initial_state is None else d_initial_state, None


def _flops(x: Tensor, *args: Any, **kwargs: Any) -> int:
    """2 T C for h = a h + x, or 8 T C if complex."""
    return x.numel() * (8 if x.is_complex() else 2)


register_operator(
    "linear_scan",
    fake=_fake,
    setup=_setup,
    backward=_backward,
    fake_backward=_fake_backward,
    flops=_flops,
    flops_of_tensors=True,
)
