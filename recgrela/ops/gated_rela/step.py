"""`gated_rela` of one more row of each sequence; the state is updated in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import register_in_place
from recgrela.ops.causal_conv1d_step import convolve_next
from recgrela.ops.checks import (
    cast_for_autocast,
    cast_parameters,
    check_operands,
    check_state,
    refuse_gradients,
    state_dtype,
)
from recgrela.ops.gated_rela.op import CUDA_DTYPES, CUDA_HEAD_DIMS, conv_kernel_size, head_dim_of
from recgrela.ops.gated_rela.reference import RelaState, phi
from recgrela.ops.rotary import rotary_angles, rotate_pairs
from recgrela.ops.support import Kernel, Op


def gated_rela_step_reference(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    g: Tensor | None,
    state: RelaState,
    *,
    num_heads: int,
    turns: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """The definition of `gated_rela_step` in plain PyTorch."""
    kv_state, history, position = state
    dtype = kv_state.dtype

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(1, (num_heads, -1))  # [B, H, d]

    if k is None:
        q, k = q.chunk(2, dim=-1)
    fq, fk, v_wide = phi(q.to(dtype)), phi(k.to(dtype)), v.to(dtype)
    rq, rk = fq, fk
    if turns is not None:
        angles = rotary_angles(position, turns, dtype=dtype)
        rq, rk = rotate_pairs(fq, angles), rotate_pairs(fk, angles)
    kv, key_sum = kv_state[:, :, :-1], kv_state[:, :, -1]
    kv.add_(heads(rk)[..., None] * heads(v_wide)[:, :, None])
    key_sum.add_(heads(fk))
    position.add_(1)
    attended = position.to(dtype)[:, None, None]
    numerator = (heads(rq)[:, :, None] @ kv).squeeze(2)  # [B, H, d]
    denominator = (heads(fq) * key_sum).sum(-1, keepdim=True)
    y = (numerator / attended / (denominator / attended + eps)).flatten(1)
    if conv_weight is not None:
        y = y + F.silu(convolve_next(v, conv_weight, conv_bias, history))
    return (y if g is None else y * F.silu(g.to(dtype))).to(v.dtype)


def _by_reference(*args: Any) -> Tensor:
    q, k, v, g, kv_state, history, position, turns, conv_weight, conv_bias, num_heads, eps = args
    return gated_rela_step_reference(
        q,
        k,
        v,
        g,
        RelaState(kv_state, history, position),
        num_heads=num_heads,
        turns=turns,
        conv_weight=conv_weight,
        conv_bias=conv_bias,
        eps=eps,
    )


OP = Op(
    "gated_rela_step",
    {
        "cpu": Kernel((torch.float32, torch.float64)),
        "cuda": Kernel(CUDA_DTYPES, head_dims=CUDA_HEAD_DIMS),
    },
    _by_reference,
    "composition",
    in_place=(4, 5, 6),
)


def gated_rela_step(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    g: Tensor | None,
    state: RelaState,
    *,
    num_heads: int,
    turns: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Causal `gated_rela` of the next row of each sequence, whose state is updated in place.

    It costs the same after any number of rows, and has no limit on positions: the angles come from integer
    products, which do not lose precision as a position grows.

    Args:
        q, k, v: [B, D], one row of each sequence; one device and one floating dtype. If `k` is None, `q` is
            [B, 2 D], q and k side by side.
        g: the gate before its SiLU, shaped like `v`; None leaves the gate out.
        state: the state before the row, as `gated_rela` returns it. `kv_state`, `history` and `position` are
            updated in place; each sequence's part is contiguous, and sequences may be any distance apart.
        num_heads: divides D into heads of an even width.
        turns: [D / 2] int64 from `rotary_turns`; None: no rotation.
        conv_weight, conv_bias: [D, K] and [D] of the local shortcut, float64 for float64 rows, else float32;
            half precision is converted. None leaves it out; then `history` has no rows.
        eps: added to the denominator.

    Returns:
        y of the shape and dtype of `v`.

    Raises:
        TypeError, ValueError: if an operand has a wrong shape, dtype, stride or device; the message names it.
        NotImplementedError: if a gradient is needed; use `gated_rela` with `initial_state`.
    """
    op = OP.name
    if v.dim() != 2:
        raise ValueError(f"{op}: v must be [B, D], got shape {tuple(v.shape)}")
    batch, width = v.shape
    refuse_gradients(op, "gated_rela with initial_state", q, k, v, g, *state, conv_weight, conv_bias)
    q, k, v, g = cast_for_autocast(v.device.type, q, k, v, g)
    conv_weight, conv_bias = cast_parameters(state_dtype(v.dtype), conv_weight, conv_bias)
    check_operands(
        op,
        "v",
        v,
        q=(q, (batch, 2 * width if k is None else width)),
        k=(k, (batch, width)),
        g=(g, (batch, width)),
    )
    head_dim, kernel_size = check_rela_step(op, "v", v, state, num_heads, turns, conv_weight, conv_bias)
    kv_state, history, position = state
    rows = history if history.dtype == v.dtype else history.to(v.dtype)  # under autocast
    operands = (q, k, v, g, kv_state, rows, position, turns, conv_weight, conv_bias)
    y: Tensor = OP.run(v, *operands, num_heads, float(eps), head_dim=head_dim, kernel_size=kernel_size)
    if rows is not history:
        history.copy_(rows)
    return y


def check_rela_step(
    op: str,
    first_name: str,
    first: Tensor,
    state: RelaState,
    num_heads: int,
    turns: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
) -> tuple[int, int]:
    """Check the state and the parameters of a step.

    Args:
        op: the op's name, for the messages.
        first_name, first: name and tensor of the operand [B, D] that sets sizes, dtype and device.
        state, num_heads, turns, conv_weight, conv_bias: see `gated_rela_step`; parameters are converted.

    Returns:
        The channels of a head, and the kernel size, 0 without a convolution.

    Raises:
        TypeError, ValueError: if one is wrong; the message names it.
    """
    batch, width = first.shape
    head_dim = head_dim_of(op, first, num_heads)
    kernel_size = conv_kernel_size(op, conv_weight, conv_bias, width)
    if any(x is None for x in state):
        raise ValueError(f"{op}: state lacks one of {', '.join(RelaState._fields)}")
    dtype = state_dtype(first.dtype)
    states: dict[str, Any] = {
        "state.kv_state": (state.kv_state, (batch, num_heads, head_dim + 1, head_dim), dtype),
        "state.history": (state.history, (batch, max(kernel_size - 1, 0), width)),
        "state.position": (state.position, (batch,), torch.int64),
    }
    check_operands(
        op,
        first_name,
        first,
        turns=(turns, (width // 2,), torch.int64),
        conv_weight=(conv_weight, (width, "K"), dtype),
        conv_bias=(conv_bias, (width,), dtype),
        **states,
    )
    for name, (x, *_) in states.items():
        check_state(op, name, x)
    return head_dim, kernel_size


NUM_OPERANDS = 10  # tensors among the operator's arguments, q .. conv_bias


def _fake(*args: Any) -> Tensor:
    v: Tensor = args[2]
    return v.new_empty(v.shape)


def _flops(*args: Any, **kwargs: Any) -> int:
    """See `flops_of_step`."""
    return flops_of_step(args[2], args[8], args[NUM_OPERANDS])


def flops_of_step(v: Sequence[int], conv_weight: Sequence[int] | None, num_heads: int) -> int:
    """4 B D d + 4 B D + 2 B D K, for heads of d channels, as of `gated_rela`; operands are shapes."""
    kernel_size = 0 if conv_weight is None else conv_weight[-1]
    return math.prod(v) * (4 * (v[-1] // num_heads) + 4 + 2 * kernel_size)


register_in_place("gated_rela_step", fake=_fake, flops=_flops)
