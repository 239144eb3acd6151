"""The selective state-space recurrence of Mamba over packed sequences (arXiv 2312.00752, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import call_operator, may_need_gradient, register_operator
from recgrela.ops.checks import (
    autocast_enabled,
    cast,
    cast_for_autocast,
    cast_parameters,
    check_operands,
    gradient_like,
    lengths_of,
    none_for_absent,
    offsets_of,
    optional_rows,
    state_dtype,
    to_rows,
    with_shape,
)
from recgrela.ops.support import Kernel, Op

MAX_STATES = 256  # limit of the kernels


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
    dtype = A.dtype
    step = delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias
    step = F.softplus(step) if delta_softplus else step
    delta_u = step * u.to(dtype)
    lengths = lengths_of("selective_scan", cu_seqlens, u.shape[0])
    states = A.new_zeros(len(lengths), *A.shape) if initial_state is None else initial_state
    outs, finals, row = [], [], 0
    for length, state in zip(lengths, states, strict=True):
        for i in range(row, row + length):
            state = (step[i, :, None] * A).exp() * state + delta_u[i, :, None] * B[i].to(dtype)
            outs.append(state @ C[i].to(dtype))
        finals.append(state)
        row += length
    y = torch.stack(outs) if outs else delta_u
    y = y if D is None else y + D * u.to(dtype)
    y = y if z is None else y * F.silu(z.to(dtype))
    if not return_state:
        return y.to(u.dtype)
    return y.to(u.dtype), torch.stack(finals) if finals else states


def _by_reference(*args: Any) -> Any:
    *operands, delta_softplus, return_state, _save_checkpoints = args
    u, delta, A, B, C, D, z, delta_bias, cu_seqlens, initial_state = operands
    out = selective_scan_reference(
        u, delta, A, B, C, D, z, delta_bias, cu_seqlens, delta_softplus, initial_state, return_state
    )
    return (*out, None) if return_state else (out, None, None)


OP = Op(
    "selective_scan",
    {
        "cpu": Kernel((torch.float32, torch.float64), max_states=MAX_STATES),
        "cuda": Kernel((torch.float32, torch.float16, torch.bfloat16), max_states=MAX_STATES),
    },
    _by_reference,
)


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
    """The selective state-space recurrence of Mamba, with a skip connection and a gate.

    For each channel c and state n of a sequence, from zero or an initial state::

        d_i[c]    = softplus(delta_i[c] + delta_bias[c])
        h_i[c, n] = exp(d_i[c] A[c, n]) h_{i-1}[c, n] + d_i[c] B_i[n] u_i[c]
        y_i[c]    = (sum_n C_i[n] h_i[c, n] + D[c] u_i[c]) * SiLU(z_i[c])

    No tensor of size [T, I, N] is stored: if a gradient is needed, the forward saves checkpoints, the states
    before every 16th row (every 32nd on the CPU). The backward is deterministic.

    Args:
        u, delta, z: [T, I], the rows of all sequences end to end, or [B, L, I], sequences of equal length
            with `cu_seqlens` None. Any row stride; one device and one floating dtype. z None: no gate.
        A: [I, N], float64 for float64 operands, else float32; half precision is converted. Kernels take N up
            to 256. Positive entries make states grow.
        B, C: [T, N] or [B, L, N], of the dtype of `u`.
        D, delta_bias: [I], of the dtype of `A`; None leaves them out.
        cu_seqlens: int32 or int64 [B + 1] on the device of `u`: sequence b is rows
            cu_seqlens[b] : cu_seqlens[b + 1]. An empty sequence has no rows, and the state after it is the
            initial one.
        delta_softplus: if False, the step is delta + delta_bias itself, which must not be negative.
        initial_state: [B, I, N] of the dtype of `A`, h before each sequence; None: zeros.
        return_state: also return h after each sequence.

    Returns:
        y of the shape and dtype of `u`; with `return_state` also [B, I, N] of the dtype of `A`.

    Raises:
        TypeError, ValueError: if an operand has a wrong shape, dtype or device; the message names it.
        RuntimeError: if cu_seqlens does not start at 0, decreases or does not end at T. On CUDA this is a
            device-side assertion, which a later call reports.
        NotImplementedError: for second derivatives; use `selective_scan_reference`.
    """
    op, shape = OP.name, u.shape
    cu_seqlens = offsets_of(op, "u", u, cu_seqlens)
    u, delta, B, C, z = cast_for_autocast(u.device.type, u, delta, B, C, z)
    dtype = state_dtype(u.dtype)
    A, D, delta_bias = cast_parameters(dtype, A, D, delta_bias)
    if autocast_enabled(u.device.type):
        (initial_state,) = cast(dtype, initial_state)
    *rows, channels = shape
    if A.dim() != 2 or A.shape[1] < 1:
        raise ValueError(f"{op}: A must be [{channels}, N] with at least one state, got {tuple(A.shape)}")
    num_states = A.shape[1]
    check_operands(
        op,
        "u",
        u,
        delta=(delta, tuple(shape)),
        A=(A, (channels, num_states), dtype),
        B=(B, (*rows, num_states)),
        C=(C, (*rows, num_states)),
        D=(D, (channels,), dtype),
        z=(z, tuple(shape)),
        delta_bias=(delta_bias, (channels,), dtype),
        initial_state=(initial_state, (cu_seqlens.shape[0] - 1, channels, num_states), dtype),
    )
    operands = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    needs_gradient = any(map(may_need_gradient, operands))
    y, state, _ = OP.run(
        u,
        to_rows(u),
        to_rows(delta),
        A,
        to_rows(B),
        to_rows(C),
        D,
        optional_rows(z),
        delta_bias,
        cu_seqlens,
        initial_state,
        delta_softplus,
        return_state,
        needs_gradient,
        num_states=num_states,
    )
    return (with_shape(y, shape), state) if return_state else with_shape(y, shape)


def checkpoints_shape(u: Tensor, A: Tensor, cu_seqlens: Tensor) -> tuple[int, int, int]:
    """The shape of the checkpoints, [number, I, N].

    They are n rows apart, as each backend prefers. The state before row n j of sequence b has index
    cu_seqlens[b] // n + b + j.
    """
    rows = 32 if u.device.type == "cpu" else 16
    return u.shape[0] // rows + cu_seqlens.shape[0] - 1, A.shape[0], A.shape[1]


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
    save_checkpoints: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    state = (cu_seqlens.shape[0] - 1, *A.shape) if return_state else (0,)
    checkpoints = checkpoints_shape(u, A, cu_seqlens) if save_checkpoints else (0,)
    return u.new_empty(u.shape), A.new_empty(state), A.new_empty(checkpoints)


def _fake_backward(d_y: Tensor, d_final_state: Tensor | None, *operands: Any) -> tuple[Tensor, ...]:
    return tuple(gradient_like(x, operands[0]) for x in _differentiable(operands))


def _differentiable(operands: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """The forward's operands that get gradients: all but cu_seqlens."""
    return *operands[:8], operands[9]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.delta_softplus, ctx.returns_state, ctx.saves_checkpoints = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, d_y: Tensor | None, d_final_state: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if not ctx.saves_checkpoints:
        raise RuntimeError("selective_scan: a backward needs save_checkpoints=True in the forward")
    tensors = ctx.saved_tensors
    gradients = call_operator(
        "selective_scan_backward",
        torch.zeros_like(tensors[0]) if d_y is None else d_y,
        d_final_state if ctx.returns_state else None,
        *tensors,
        ctx.delta_softplus,
    )
    *gradients, d_initial_state = none_for_absent(gradients, _differentiable(tensors))
    return *gradients, None, d_initial_state, None, None, None


def _flops(
    u: Sequence[int],
    delta: Sequence[int],
    A: Sequence[int],
    B: Sequence[int],
    C: Sequence[int],
    D: Sequence[int] | None,
    z: Sequence[int] | None,
    *args: Any,
    **kwargs: Any,
) -> int:
    """9 T I N, and T I each for the skip and the gate.

    This is the count of Mamba's papers; the 9 includes the discretization, which is elementwise.
    """
    return math.prod(u) * (9 * A[-1] + (D is not None) + (z is not None))


register_operator(
    "selective_scan",
    fake=_fake,
    setup=_setup,
    backward=_backward,
    fake_backward=_fake_backward,
    flops=_flops,
)
