"""`linear_scan` of one more row of each sequence; the state is updated in place."""

from __future__ import annotations

import torch
from torch import Tensor

from recgrela.ops.checks import (
    COMPLEX,
    FLOATS,
    autocast_enabled,
    cast,
    check_operands,
    check_state,
    refuse_gradients,
)
from recgrela.ops.linear_scan import scan_state_dtype
from recgrela.ops.support import Op


def linear_scan_step_reference(x: Tensor, a: Tensor, state: Tensor) -> Tensor:
    """The definition of `linear_scan_step` in plain PyTorch."""
    state.mul_(a).add_(x)
    return state.clone() if state.dtype == x.dtype else state.to(x.dtype)


# The composition has three kernels of PyTorch, which exporters of programs know for complex states too.
OP = Op("linear_scan_step", {}, linear_scan_step_reference, "composition", in_place=(2,))


def linear_scan_step(x: Tensor, a: Tensor, state: Tensor) -> Tensor:
    """state = a * state + x in place: `linear_scan` of the next row of each sequence.

    It costs the same after any number of rows.

    Args:
        x: [B, C], one row of each sequence; any floating dtype, complex64 or complex128. Autocast converts
            half precision to float32.
        a: [C], the same for all sequences, or [B, C]; of the dtype of `x`, but float32 for half precision.
        state: [B, C] of the dtype of `a`, h before the row; afterwards h of the row. It is updated in place;
            its rows are contiguous, and may be any distance apart.

    Returns:
        h of the shape and dtype of `x`.

    Raises:
        TypeError, ValueError: if an operand has a wrong shape, dtype, stride or device; the message names it.
        NotImplementedError: if a gradient is needed; use `linear_scan` with `initial_state`.
    """
    op = OP.name
    if x.dim() != 2:
        raise ValueError(f"{op}: x must be [B, C], got shape {tuple(x.shape)}")
    refuse_gradients(op, "linear_scan with initial_state", x, a, state)
    if autocast_enabled(x.device.type) and not x.is_complex() and x.dtype != torch.float64:
        x, a = cast(torch.float32, x, a)
    shape, dtype = tuple(x.shape), scan_state_dtype(x.dtype)
    check_operands(
        op,
        "x",
        x,
        FLOATS + COMPLEX,
        a=(a, shape[1:] if a.dim() == 1 else shape, dtype),
        state=(state, shape, dtype),
    )
    check_state(op, "state", state)
    h: Tensor = OP.run(x, x, a, state)
    return h
