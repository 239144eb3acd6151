"""The selective state-space recurrence of Mamba over packed sequences (arXiv 2312.00752, section 3)."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import no_second_derivative, skip_setup
from recgrela.ops.checks import (
    autocast_enabled,
    cast_for_autocast,
    check_cu_seqlens,
    check_devices,
    check_operands,
    sequences_of,
    state_dtype,
    to_rows,
)

MOST_STATES = 256
# Rows between the states that the forward keeps for the backward.
CHECKPOINT_ROWS = 32


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    cu_seqlens: Tensor,
    delta_softplus: bool = True,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition of `selective_scan` in plain PyTorch, on packed rows."""
    wide = A.dtype
    step = delta.to(wide) if delta_bias is None else delta.to(wide) + delta_bias
    step = F.softplus(step) if delta_softplus else step
    driven = step * u.to(wide)
    lengths = cu_seqlens.diff().tolist()
    before = A.new_zeros(len(lengths), *A.shape) if initial_state is None else initial_state
    outs, finals, row = [], [], 0
    for length, state in zip(lengths, before, strict=True):
        for i in range(row, row + length):
            state = (step[i, :, None] * A).exp() * state + driven[i, :, None] * B[i].to(wide)
            outs.append(state @ C[i].to(wide))
        finals.append(state)
        row += length
    y = torch.stack(outs) if outs else driven
    y = y if D is None else y + D * u.to(wide)
    y = y if z is None else y * F.silu(z.to(wide))
    if not return_state:
        return y.to(u.dtype)
    return y.to(u.dtype), torch.stack(finals) if finals else before


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    *,
    delta_softplus: bool = ...,
    initial_state: Tensor | None = ...,
    return_state: Literal[False] = ...,
) -> Tensor: ...
@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    *,
    delta_softplus: bool = ...,
    initial_state: Tensor | None = ...,
    return_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    delta_softplus: bool = True,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The state-space recurrence whose steps, inputs and outputs the data choose, with skip and gate.

    For each channel c and state n of a sequence, from zero or a state before its start::

        d_i[c]    = softplus(delta_i[c] + delta_bias[c])
        h_i[c, n] = exp(d_i[c] A[c, n]) h_{i-1}[c, n] + d_i[c] B_i[n] u_i[c]
        y_i[c]    = (sum_n C_i[n] h_i[c, n] + D[c] u_i[c]) * SiLU(z_i[c])

    Nothing of size [T, I, N] is kept: the states at every 32nd row are, for the backward, and only where a
    gradient is wanted. The backward is deterministic.

    Args:
        u, delta, z: [T, I] rows of all sequences end to end, or [B, L, I] of equal lengths with `cu_seqlens`
            None. Any row stride; one dtype and device. float32 or float64 on the CPU (where autocast computes
            in float32 too); float32, float16 or bfloat16 on CUDA, with states in float32. z None: no gate.
        A: [I, N], N up to 256, float64 for float64 operands, else float32. Negative, or the states grow.
        B, C: [T, N] or [B, L, N], of the dtype of `u`.
        D, delta_bias: [I], of the dtype of `A`; None leaves them out.
        cu_seqlens: int32 or int64 [B + 1] on the device of `u`: sequence b is rows
            cu_seqlens[b] .. cu_seqlens[b + 1].
        delta_softplus: False takes delta + delta_bias as it is.
        initial_state: [B, I, N] of the dtype of `A`, h before each sequence; None: zeros.
        return_state: also return h behind each sequence.

    Returns:
        y of the shape and dtype of `u`; with `return_state` also [B, I, N] of the dtype of `A`.

    Raises:
        TypeError, ValueError: on operands that do not fit, with their names.
        RuntimeError: on a cu_seqlens that does not start at 0, decreases or does not end at T (on CUDA a
            device-side assertion, which a later call reports).
        NotImplementedError: from a second derivative; use `selective_scan_reference`.
    """
    op, shape = "selective_scan", u.shape
    cu_seqlens = sequences_of(op, "u", u, cu_seqlens)
    check_cu_seqlens(op, cu_seqlens, u)
    u, delta, B, C, z = cast_for_autocast(u.device.type, u, delta, B, C, z)  # type: ignore[assignment]
    wide = state_dtype(u.dtype)
    if autocast_enabled(u.device.type):  # kept wide
        A, D, delta_bias, initial_state = (  # type: ignore[assignment]
            None if x is None else x.to(wide) for x in (A, D, delta_bias, initial_state)
        )
    *rows, channels = shape
    if A.dim() != 2 or not 1 <= A.shape[1] <= MOST_STATES:
        raise ValueError(
            f"{op}: A must be [{channels}, N] with N from 1 to {MOST_STATES}, got {tuple(A.shape)}"
        )
    states = A.shape[1]
    check_operands(
        op,
        "u",
        u,
        delta=(delta, tuple(shape)),
        A=(A, (channels, states), wide),
        B=(B, (*rows, states)),
        C=(C, (*rows, states)),
        D=(D, (channels,), wide),
        z=(z, tuple(shape)),
        delta_bias=(delta_bias, (channels,), wide),
        initial_state=(initial_state, (cu_seqlens.shape[0] - 1, channels, states), wide),
    )
    operands = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands)
    y, state, _ = torch.ops.recgrela.selective_scan(
        to_rows(u),
        to_rows(delta),
        A,
        to_rows(B),
        to_rows(C),
        D,
        None if z is None else to_rows(z),
        delta_bias,
        cu_seqlens,
        initial_state,
        delta_softplus,
        return_state,
        needs_grad,
    )
    return (y.view(shape), state) if return_state else y.view(shape)


def checkpoints_shape(u: Tensor, A: Tensor, cu_seqlens: Tensor) -> tuple[int, int, int]:
    """Of the kept states: those before row 32 j of sequence b are number cu_seqlens[b] // 32 + b + j.

    The numbers that no row has are zero.
    """
    return u.shape[0] // CHECKPOINT_ROWS + cu_seqlens.shape[0] - 1, A.shape[0], A.shape[1]


@torch.library.register_fake("recgrela::selective_scan")
def _fake(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_state: Tensor | None,
    delta_softplus: bool,
    return_state: bool,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    check_devices("selective_scan", u, delta, A, B, C, D, z, delta_bias, cu_seqlens, initial_state)
    state = (cu_seqlens.shape[0] - 1, *A.shape) if return_state else (0,)
    kept = checkpoints_shape(u, A, cu_seqlens) if keep_states else (0,)
    return u.new_empty(u.shape), A.new_empty(state), A.new_empty(kept)


@torch.library.register_fake("recgrela::selective_scan_backward")
def _fake_backward(
    dy: Tensor,
    d_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_state: Tensor | None,
    kept: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, ...]:
    operands = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    check_devices("selective_scan_backward", dy, d_state, *operands, cu_seqlens, kept)
    return tuple(u.new_empty(0) if x is None else x.new_empty(x.shape) for x in operands)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.softplus, ctx.has_state, ctx.keeps_states = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, dy: Tensor | None, d_state: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if not ctx.keeps_states:
        raise RuntimeError("selective_scan: a backward needs keep_states=True in the forward")
    tensors = ctx.saved_tensors
    grads = torch.ops.recgrela.selective_scan_backward(
        torch.zeros_like(tensors[0]) if dy is None else dy,
        d_state if ctx.has_state else None,
        *tensors,
        ctx.softplus,
    )
    u, delta, A, B, C, D, z, delta_bias, _cu_seqlens, initial_state, _kept = tensors
    present = [
        grad if x is not None else None
        for grad, x in zip(grads, (u, delta, A, B, C, D, z, delta_bias, initial_state), strict=True)
    ]
    return *present[:8], None, present[8], None, None, None


torch.library.register_autograd("recgrela::selective_scan", _backward, setup_context=_setup)
torch.library.register_autograd(
    "recgrela::selective_scan_backward", no_second_derivative, setup_context=skip_setup
)
