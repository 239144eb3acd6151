"""`selective_scan` of one more row of each sequence; the state is updated in place."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import register_in_place
from recgrela.ops.checks import (
    cast_for_autocast,
    cast_parameters,
    check_operands,
    check_state,
    refuse_gradients,
    state_dtype,
)
from recgrela.ops.selective_scan import _flops
from recgrela.ops.support import Kernel, Op


def selective_scan_step_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    state: Tensor,
    delta_softplus: bool = True,
) -> Tensor:
    """The definition of `selective_scan_step` in plain PyTorch."""
    dtype = A.dtype
    step = delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias
    step = F.softplus(step) if delta_softplus else step
    added = (step * u.to(dtype))[..., None] * B.to(dtype)[:, None]
    state.mul_((step[..., None] * A).exp()).add_(added)
    y = (state @ C.to(dtype)[..., None]).squeeze(-1)
    y = y if D is None else y + D * u.to(dtype)
    y = y if z is None else y * F.silu(z.to(dtype))
    return y.to(u.dtype)


OP = Op(
    "selective_scan_step",
    {
        "cpu": Kernel((torch.float32, torch.float64)),
        "cuda": Kernel((torch.float32, torch.float16, torch.bfloat16)),
    },
    selective_scan_step_reference,
    "composition",
    in_place=(8,),
)


def selective_scan_step(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    state: Tensor,
    *,
    delta_softplus: bool = True,
) -> Tensor:
    """`selective_scan` of the next row of each sequence, whose state is updated in place.

    It costs the same after any number of rows. The batch here is M sequences, since B is the input matrix.

    Args:
        u, delta, z: [M, I], one row of each sequence; one device and one floating dtype. z None: no gate.
        A: [I, N], float64 for float64 operands, else float32; half precision is converted.
        B, C: [M, N] of the dtype of `u`.
        D, delta_bias: [I], of the dtype of `A`; None leaves them out.
        state: [M, I, N] of the dtype of `A`, h before the row; afterwards h of the row. It is updated in
            place; the state of a sequence is contiguous, and sequences may be any distance apart.
        delta_softplus: if False, the step is delta + delta_bias itself, which must not be negative.

    Returns:
        y of the shape and dtype of `u`.

    Raises:
        TypeError, ValueError: if an operand has a wrong shape, dtype, stride or device; the message names it.
        NotImplementedError: if a gradient is needed; use `selective_scan` with `initial_state`.
    """
    op = OP.name
    if u.dim() != 2:
        raise ValueError(f"{op}: u must be [M, I], got shape {tuple(u.shape)}")
    batch, channels = shape = tuple(u.shape)
    if A.dim() != 2 or A.shape[1] < 1:
        raise ValueError(f"{op}: A must be [{channels}, N] with at least one state, got {tuple(A.shape)}")
    num_states = A.shape[1]
    refuse_gradients(op, "selective_scan with initial_state", u, delta, A, B, C, D, z, delta_bias, state)
    u, delta, B, C, z = cast_for_autocast(u.device.type, u, delta, B, C, z)
    dtype = state_dtype(u.dtype)
    A, D, delta_bias = cast_parameters(dtype, A, D, delta_bias)
    check_operands(
        op,
        "u",
        u,
        delta=(delta, shape),
        A=(A, (channels, num_states), dtype),
        B=(B, (batch, num_states)),
        C=(C, (batch, num_states)),
        D=(D, (channels,), dtype),
        z=(z, shape),
        delta_bias=(delta_bias, (channels,), dtype),
        state=(state, (batch, channels, num_states), dtype),
    )
    check_state(op, "state", state)
    y: Tensor = OP.run(u, u, delta, A, B, C, D, z, delta_bias, state, delta_softplus, num_states=num_states)
    return y


def _fake(u: Tensor, *args: Any) -> Tensor:
    return u.new_empty(u.shape)


register_in_place("selective_scan_step", fake=_fake, flops=_flops)
