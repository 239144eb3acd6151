"""`gated_rela` for one row of each sequence, for models that predict from the last position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recgrela.ops._library import call_operator, register_operator
from recgrela.ops.checks import (
    autocast_enabled,
    cast,
    cast_for_autocast,
    cast_parameters,
    check_cu_seqlens,
    check_operands,
    gradient_like,
    none_for_absent,
    state_dtype,
)
from recgrela.ops.gated_rela.op import CUDA_DTYPES, CUDA_HEAD_DIMS, conv_kernel_size, head_dim_of
from recgrela.ops.gated_rela.reference import gated_rela_last_reference
from recgrela.ops.support import Kernel, Op


def gated_rela_last(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    cu_seqlens: Tensor,
    rows: Tensor,
    *,
    num_heads: int,
    rotary: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """`gated_rela` for one row of each sequence, which attends to the whole sequence.

    Only these rows are computed, in one pass over the keys and values of all rows. For the last row of a
    sequence the causal and the bidirectional form are the same. The row of an empty sequence is zeros, and so
    are its gradients, so that a batch can be filled up with empty sequences.

    Args:
        q: [B, D], the row's query.
        k, v: [T, D], keys and values of all rows, packed; see `gated_rela` for dtypes and strides.
        g: [B, D], the row's gate before its SiLU; None leaves the gate out.
        cu_seqlens: int32 or int64 [B + 1]; sequence b is rows cu_seqlens[b] : cu_seqlens[b + 1].
        rows: [B] int64; `rows[b]` is a row of sequence b, and of no meaning if the sequence is empty. On CUDA
            a row outside its sequence is not an error: the nearest row of the sequence takes its place.
        num_heads, rotary, conv_weight, conv_bias, eps: options of `gated_rela`.

    Returns:
        y [B, D] of the dtype of `v`.

    Raises:
        TypeError, ValueError, RuntimeError: as for `gated_rela`; RuntimeError on the CPU if a row is outside
            its sequence.
        NotImplementedError: for second derivatives; use `gated_rela_last_reference`.
    """
    op = "gated_rela_last"
    if v.dim() != 2:
        raise ValueError(f"{op}: v must be [T, D], got shape {tuple(v.shape)}")
    width, head_dim = v.shape[1], head_dim_of(op, v, num_heads)
    conv_kernel_size(op, conv_weight, conv_bias, width)
    check_cu_seqlens(op, cu_seqlens, v)
    batch = cu_seqlens.shape[0] - 1
    q, k, v, g = cast_for_autocast(v.device.type, q, k, v, g)
    dtype = state_dtype(v.dtype)
    conv_weight, conv_bias = cast_parameters(dtype, conv_weight, conv_bias)
    if autocast_enabled(v.device.type):
        (rotary,) = cast(dtype, rotary)
    check_operands(
        op,
        "v",
        v,
        q=(q, (batch, width)),
        k=(k, tuple(v.shape)),
        g=(g, (batch, width)),
        rows=(rows, (batch,), torch.int64),
        rotary=(rotary, ("P", width // 2, 2), dtype),
        conv_weight=(conv_weight, (width, "K"), dtype),
        conv_bias=(conv_bias, (width,), dtype),
    )
    operands = (q, k, v, g, cu_seqlens, rows, rotary, conv_weight, conv_bias)
    return OP.run(v, *operands, num_heads, float(eps), head_dim=head_dim)[0]


def _by_reference(*args: Any) -> tuple[Tensor, None]:
    *operands, rotary, conv_weight, conv_bias, num_heads, eps = args
    y = gated_rela_last_reference(
        *operands,
        num_heads=num_heads,
        rotary=rotary,
        conv_weight=conv_weight,
        conv_bias=conv_bias,
        eps=eps,
    )
    return y, None


OP = Op(
    "gated_rela_last",
    {
        "cpu": Kernel((torch.float32, torch.float64)),
        "cuda": Kernel(CUDA_DTYPES, head_dims=CUDA_HEAD_DIMS),
    },
    _by_reference,
)

NUM_OPERANDS = 9  # tensors among the operator's arguments, q .. conv_bias


def _fake(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, cu_seqlens: Tensor, *args: Any
) -> tuple[Tensor, Tensor]:
    sums = v.new_empty(cu_seqlens.shape[0] - 1, 2, v.shape[1], dtype=state_dtype(v.dtype))
    return q.new_empty(q.shape), sums


def _differentiable(operands: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """The operands with gradients: q, k, v, g, conv_weight and conv_bias."""
    return *operands[:4], *operands[7:9]


def _fake_backward(d_y: Tensor, sums: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(gradient_like(x, args[2]) for x in _differentiable(args[:NUM_OPERANDS]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *operands, ctx.num_heads, ctx.eps = inputs
    ctx.save_for_backward(output[1], *operands)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # zeros for the sums would be a kernel


def _backward(ctx: Any, d_y: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if d_y is None:
        return (None,) * (NUM_OPERANDS + 2)
    sums, *operands = ctx.saved_tensors
    gradients = call_operator("gated_rela_last_backward", d_y, sums, *operands, ctx.num_heads, ctx.eps)
    d_q, d_k, d_v, d_g, *parameters = none_for_absent(gradients, _differentiable(tuple(operands)))
    return d_q, d_k, d_v, d_g, None, None, None, *parameters, None, None


def _flops(*args: Any, **kwargs: Any) -> int:
    """6 T D + 2 B D + 2 B D K.

    The terms are: the product of the query with each key, of its weight with the value, and the sum of keys;
    the product of the query with that sum; the convolution of the rows.
    """
    q: Sequence[int] = args[0]
    v: Sequence[int] = args[2]
    conv_weight: Sequence[int] | None = args[7]
    kernel_size = 0 if conv_weight is None else conv_weight[-1]
    return 6 * math.prod(v) + math.prod(q) * (2 + 2 * kernel_size)


register_operator(
    "gated_rela_last",
    fake=_fake,
    setup=_setup,
    backward=_backward,
    fake_backward=_fake_backward,
    flops=_flops,
)
