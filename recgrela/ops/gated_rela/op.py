"""Gated rotary-enhanced linear attention of all rows, fused into one operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from recgrela.ops._library import call_operator, register_operator
from recgrela.ops.checks import (
    autocast_enabled,
    cast,
    cast_for_autocast,
    cast_parameters,
    check_operands,
    gradient_like,
    kernel_size_of,
    none_for_absent,
    offsets_of,
    optional_rows,
    state_dtype,
    to_rows,
    with_shape,
)
from recgrela.ops.gated_rela.reference import RelaState, gated_rela_reference
from recgrela.ops.support import Kernel, Op


def _by_reference(*args: Any) -> Any:
    *operands, num_heads, causal, eps, return_state = args
    q, k, v, g, cu_seqlens, rotary, conv_weight, conv_bias, *state = operands
    returns_state = return_state and causal
    out = gated_rela_reference(
        q,
        k,
        v,
        g,
        cu_seqlens,
        num_heads=num_heads,
        causal=causal,
        rotary=rotary,
        conv_weight=conv_weight,
        conv_bias=conv_bias,
        eps=eps,
        initial_state=None if state[0] is None else RelaState(*state),
        return_state=returns_state,
    )
    return (out[0], *out[1]) if returns_state else (out, None, None, None)


# Devices on which the bidirectional form saves the sums over keys for its gradient.
SAVES_SUMS = {"cuda"}
CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CUDA_HEAD_DIMS = (8, 16, 32, 64, 128)
OP = Op(
    "gated_rela",
    {
        "cpu": Kernel((torch.float32, torch.float64)),
        "cuda": Kernel(CUDA_DTYPES, head_dims=CUDA_HEAD_DIMS, max_kernel_size=4),
    },
    _by_reference,
    outputs_like_operands=(0, 2),
)


def head_dim_of(op: str, v: Tensor, num_heads: int) -> int:
    """Channels of a head, an even number.

    Raises:
        ValueError: if `num_heads` does not divide the channels of v into heads of even width.
    """
    width = v.shape[-1]
    if num_heads < 1 or width < 1 or width % num_heads or width // num_heads % 2:
        raise ValueError(
            f"{op}: num_heads={num_heads} must divide the width {width} into heads of an even width"
        )
    return width // num_heads


def conv_kernel_size(op: str, weight: Tensor | None, bias: Tensor | None, channels: int) -> int:
    """K of the shortcut's convolution, 0 without one.

    Raises:
        ValueError: if only one of weight and bias is given, or the weight has a wrong shape.
    """
    if (weight is None) != (bias is None):
        raise ValueError(f"{op}: conv_weight and conv_bias go together; give both or neither")
    return 0 if weight is None else kernel_size_of(op, "conv_weight", weight, channels)


@overload
def gated_rela(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    g: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    *,
    num_heads: int,
    causal: bool,
    rotary: Tensor | None = ...,
    conv_weight: Tensor | None = ...,
    conv_bias: Tensor | None = ...,
    eps: float = ...,
    initial_state: RelaState | None = ...,
    return_state: Literal[False] = ...,
) -> Tensor: ...
@overload
def gated_rela(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    g: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    *,
    num_heads: int,
    causal: bool,
    rotary: Tensor | None = ...,
    conv_weight: Tensor | None = ...,
    conv_bias: Tensor | None = ...,
    eps: float = ...,
    initial_state: RelaState | None = ...,
    return_state: Literal[True],
) -> tuple[Tensor, RelaState]: ...
def gated_rela(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    g: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    num_heads: int,
    causal: bool,
    rotary: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    eps: float = 1e-6,
    initial_state: RelaState | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, RelaState]:
    """Linear attention with rotary encoding, a causal-convolution shortcut and a gate, in one pass.

    With phi(t) = elu(t) + 1, R_i the rotation by position i over the whole width, and per head::

        S_i = mean_j (R_j phi(k_j))^T v_j        z_i = mean_j phi(k_j)       j <= i (causal) or all j
        o_i = (R_i phi(q_i)) S_i / (phi(q_i) . z_i + eps)
        y_i = (o_i + SiLU(conv(v)_i)) * SiLU(g_i)

    Linear in the number of rows, in time and memory. The backward recomputes from the operands, but for the
    sums over the keys of each sequence in the bidirectional form on CUDA, and is deterministic for any number
    of threads.

    Args:
        q, k, v: [T, D], the rows of all sequences end to end, or [B, L, D], sequences of equal length with
            `cu_seqlens` None. One device and one floating dtype; autocast on the CPU computes in float32.
            Rows may have any stride, so the halves of one projection need no copy. A last dimension that is
            not contiguous is copied; on CUDA, so are rows that do not begin at multiples of 16 bytes. If `k`
            is None, `q` is [..., 2 D], q and k side by side as one projection returns them, and their
            gradients need no copy either.
        g: the gate before its SiLU, shaped like `v`; None leaves the gate out.
        cu_seqlens: int32 or int64 [B + 1] on the same device: sequence b is rows
            cu_seqlens[b] : cu_seqlens[b + 1]. An empty sequence has no rows, and the state after it is the
            initial one.
        num_heads: divides D into heads of an even width.
        causal: whether row i attends to rows up to i (True) or to its whole sequence.
        rotary: [P, D / 2, 2] from `rotary_table`, P at least the longest sequence; float64 for float64
            operands, else float32. None: no rotation. It gets no gradient.
        conv_weight, conv_bias: [D, K] and [D] of the local shortcut; None leaves it out. float64 for float64
            rows, else float32; half precision is converted, and autocast does not convert them.
        eps: added to the denominator.
        initial_state: the state after earlier rows, for the causal form; positions continue from it.
        return_state: also return the state after the last row of each sequence.

    Returns:
        y, of the shape and dtype of `v`; with `return_state`, y and the state.

    Raises:
        TypeError, ValueError: if an operand has a wrong shape, dtype or device; the message names it.
        RuntimeError: if cu_seqlens does not start at 0, decreases or does not end at T, or a sequence is
            longer than the rotary table. On CUDA this is a device-side assertion, which a later call reports.
        NotImplementedError: for second derivatives; use `gated_rela_reference`.
    """
    op, shape = OP.name, v.shape
    cu_seqlens = offsets_of(op, "v", v, cu_seqlens)
    *rows, width = shape
    head_dim = head_dim_of(op, v, num_heads)
    kernel_size = conv_kernel_size(op, conv_weight, conv_bias, width)
    if not causal and (initial_state is not None or return_state):
        raise ValueError(f"{op}: only the causal form has a state; leave out initial_state and return_state")
    kv_state, history, position = (None, None, None) if initial_state is None else initial_state
    if initial_state is not None and any(x is None for x in initial_state):
        raise ValueError(f"{op}: initial_state lacks one of {', '.join(RelaState._fields)}")
    q, k, v, g, history = cast_for_autocast(v.device.type, q, k, v, g, history)
    dtype, batch = state_dtype(v.dtype), cu_seqlens.shape[0] - 1
    conv_weight, conv_bias = cast_parameters(dtype, conv_weight, conv_bias)
    if autocast_enabled(v.device.type):
        rotary, kv_state = cast(dtype, rotary, kv_state)
    state: dict[str, Any] = {
        "initial_state.kv_state": (kv_state, (batch, num_heads, head_dim + 1, head_dim), dtype),
        "initial_state.history": (history, (batch, max(kernel_size - 1, 0), width)),
        "initial_state.position": (position, (batch,), torch.int64),
    }
    check_operands(
        op,
        "v",
        v,
        q=(q, (*rows, 2 * width if k is None else width)),
        k=(k, (*rows, width)),
        g=(g, (*rows, width)),
        rotary=(rotary, ("P", width // 2, 2), dtype),
        conv_weight=(conv_weight, (width, "K"), dtype),
        conv_bias=(conv_bias, (width,), dtype),
        **state,
    )
    saves_sums = not causal and v.device.type in SAVES_SUMS and torch.is_grad_enabled()
    y, *final_state = OP.run(
        v,
        to_rows(q),
        optional_rows(k),
        to_rows(v),
        optional_rows(g),
        cu_seqlens,
        rotary,
        conv_weight,
        conv_bias,
        kv_state,
        history,
        position,
        num_heads,
        causal,
        float(eps),
        return_state or saves_sums,
        head_dim=head_dim,
        kernel_size=kernel_size,
    )
    return (with_shape(y, shape), RelaState(*final_state)) if return_state else with_shape(y, shape)


NUM_OPERANDS = 11  # tensors among the operator's arguments, q .. position


def _fake(*args: Any) -> tuple[Tensor, ...]:
    _q, _k, v, _g, cu_seqlens, _rotary, conv_weight, *_ = args[:NUM_OPERANDS]
    num_heads, causal, _eps, return_state = args[NUM_OPERANDS:]
    y, dtype = v.new_empty(v.shape), state_dtype(v.dtype)
    if not return_state:
        return y, v.new_empty(0, dtype=dtype), v.new_empty(0), v.new_empty(0, dtype=torch.int64)
    batch, width = cu_seqlens.shape[0] - 1, v.shape[1]
    head_dim, kernel_size = width // num_heads, 1 if conv_weight is None else conv_weight.shape[1]
    kv_state = v.new_empty(batch, num_heads, head_dim + 1, head_dim, dtype=dtype)
    if not causal:
        return y, kv_state, v.new_empty(0), v.new_empty(0, dtype=torch.int64)
    return (
        y,
        kv_state,
        v.new_empty(batch, kernel_size - 1, width),
        v.new_empty(batch, dtype=torch.int64),
    )


def _differentiable(operands: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """The operands with gradients: q, k, v, g, conv_weight, conv_bias, kv_state and history."""
    return *operands[:4], *operands[6:10]


def _fake_backward(
    d_y: Tensor, d_kv_state: Tensor | None, d_history: Tensor | None, sums: Tensor | None, *args: Any
) -> tuple[Tensor, ...]:
    v = args[2]
    *operands, kv_state, history = _differentiable(args[:NUM_OPERANDS])
    gradients = (gradient_like(x, v) for x in operands)
    return *gradients, gradient_like(kv_state, v, state_dtype(v.dtype)), gradient_like(history, v)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, ctx.num_heads, ctx.causal, ctx.eps, ctx.returns_state = inputs
    saves_sums = ctx.returns_state and not ctx.causal
    ctx.save_for_backward(output[1] if saves_sums else None, *operands)
    ctx.mark_non_differentiable(*(output[1:] if saves_sums else output[3:]))
    ctx.set_materialize_grads(False)  # most calls use no gradient of the state


def _backward(
    ctx: Any, d_y: Tensor | None, d_kv_state: Tensor | None, d_history: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    sums, operands = saved[0], saved[1:]
    if d_y is None:
        d_y = torch.zeros_like(operands[2])
    if not ctx.returns_state or not ctx.causal:
        d_kv_state = d_history = None
    gradients = call_operator(
        "gated_rela_backward", d_y, d_kv_state, d_history, sums, *operands, ctx.num_heads, ctx.causal, ctx.eps
    )
    d_q, d_k, d_v, d_g, *parameters_and_state = none_for_absent(gradients, _differentiable(operands))
    return d_q, d_k, d_v, d_g, None, None, *parameters_and_state, None, None, None, None, None


def _flops(*args: Any, **kwargs: Any) -> int:
    """4 T D d + 4 T D + 2 T D K, for heads of d channels.

    The terms are: k^T v and the product of q with their sum; the sum of k and the product of q with it; the
    convolution.
    """
    v: Sequence[int] = args[2]
    conv_weight: Sequence[int] | None = args[6]
    num_heads: int = args[NUM_OPERANDS]
    kernel_size = 0 if conv_weight is None else conv_weight[-1]
    return math.prod(v) * (4 * (v[-1] // num_heads) + 4 + 2 * kernel_size)


register_operator(
    "gated_rela",
    fake=_fake,
    setup=_setup,
    backward=_backward,
    fake_backward=_fake_backward,
    flops=_flops,
)
