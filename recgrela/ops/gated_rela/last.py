"""`gated_rela` for one row of each sequence, for models that predict from the last position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import call_operator, register_operator
from recgrela.ops.checks import (
    autocast_enabled,
    cast,
    cast_for_autocast,
    cast_parameters,
    check_cu_seqlens,
    check_operands,
    state_dtype,
    without_autocast,
)
from recgrela.ops.gated_rela.op import CUDA_DTYPES, CUDA_HEAD_DIMS, conv_kernel_size, head_dim_of
from recgrela.ops.gated_rela.reference import gated_rela_last_reference, phi
from recgrela.ops.rotary import rotate
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

    Only these rows are computed, from the keys and values of all rows. For the last row of a sequence the
    causal and the bidirectional form are the same.

    Args:
        q: [B, D], the row's query.
        k, v: [T, D], keys and values of all rows, packed; see `gated_rela` for dtypes and strides.
        g: [B, D], the row's gate before its SiLU; None leaves the gate out.
        cu_seqlens: int32 or int64 [B + 1]; no sequence may be empty.
        rows: [B] int64, within 0 .. T - 1; `rows[b]` is a row of sequence b (not checked).
        num_heads, rotary, conv_weight, conv_bias, eps: options of `gated_rela`.

    Returns:
        y [B, D] of the dtype of `v`.

    Raises:
        TypeError, ValueError, RuntimeError: as for `gated_rela`.
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
    return OP.run(v, *operands, num_heads, eps, head_dim=head_dim)


def _by_reference(*args: Any) -> Tensor:
    *operands, rotary, conv_weight, conv_bias, num_heads, eps = args
    return gated_rela_last_reference(
        *operands,
        num_heads=num_heads,
        rotary=rotary,
        conv_weight=conv_weight,
        conv_bias=conv_bias,
        eps=eps,
    )


def _by_key_sums(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    cu_seqlens: Tensor,
    rows: Tensor,
    rotary: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    num_heads: int,
    eps: float,
) -> Tensor:
    """Computes the sums over all keys by the kernel, and the wanted rows from them in plain PyTorch."""
    batch, head_dim = q.shape[0], v.shape[1] // num_heads
    sums = call_operator("key_sums", k, v, cu_seqlens, rotary, num_heads)  # [B, H, d + 1, d]
    with without_autocast(v.device.type):
        start, dtype = cu_seqlens[:-1], sums.dtype
        feature = phi(q.to(dtype))
        rotated = feature if rotary is None else rotate(feature, rotary[rows - start])
        numerator = rotated.view(batch, num_heads, 1, head_dim) @ sums[:, :, :-1]  # [B, H, 1, d]
        denominator = (feature.view(batch, num_heads, head_dim) * sums[:, :, -1]).sum(-1)  # [B, H]
        denominator = denominator + eps * cu_seqlens.diff()[:, None]
        y = (numerator[:, :, 0] / denominator[..., None]).flatten(1)
        if conv_weight is not None and conv_bias is not None:
            kernel_size = conv_weight.shape[1]
            index = rows[:, None] + torch.arange(1 - kernel_size, 1, device=rows.device)  # [B, K]
            history = v[index.clamp(min=0)].to(dtype)
            history = torch.where((index >= start[:, None])[..., None], history, 0)
            y = y + F.silu((history * conv_weight.T.to(dtype)).sum(1) + conv_bias.to(dtype))
        if g is not None:
            y = y * F.silu(g.to(dtype))
        return y.to(v.dtype)


def _key_sums_cuda(k: Tensor, v: Tensor, cu_seqlens: Tensor, rotary: Tensor | None, num_heads: int) -> Tensor:
    """Computes the state by `gated_rela`, and discards its rows."""
    absent = (None,) * 3
    return torch.ops.recgrela.gated_rela(
        k, k, v, None, cu_seqlens, rotary, None, None, *absent, num_heads, True, 1e-6, True
    )[1]


def _key_sums_backward_cuda(
    d_sums: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, rotary: Tensor | None, num_heads: int
) -> tuple[Tensor, Tensor]:
    absent = (None,) * 5  # convolution and initial state
    _, d_k, d_v, *_ = torch.ops.recgrela.gated_rela_backward(
        torch.zeros_like(v), d_sums, None, k, k, v, None, cu_seqlens, rotary, *absent, num_heads, True, 1e-6
    )
    return d_k, d_v


torch.library.impl("recgrela::key_sums", "CUDA")(_key_sums_cuda)
torch.library.impl("recgrela::key_sums_backward", "CUDA")(_key_sums_backward_cuda)

OP = Op(
    "gated_rela_last",
    {
        "cpu": Kernel((torch.float32, torch.float64)),
        "cuda": Kernel(CUDA_DTYPES, head_dims=CUDA_HEAD_DIMS),
    },
    _by_reference,
    operator="key_sums",
    kernel=_by_key_sums,
)


def _fake(k: Tensor, v: Tensor, cu_seqlens: Tensor, rotary: Tensor | None, num_heads: int) -> Tensor:
    head_dim = v.shape[1] // num_heads
    shape = (cu_seqlens.shape[0] - 1, num_heads, head_dim + 1, head_dim)
    return v.new_empty(shape, dtype=state_dtype(v.dtype))


def _fake_backward(d_sums: Tensor, k: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_heads = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, d_sums: Tensor) -> tuple[Tensor | None, ...]:
    d_k, d_v = call_operator("key_sums_backward", d_sums, *ctx.saved_tensors, ctx.num_heads)
    return d_k, d_v, None, None, None


def _flops(
    k: Sequence[int], v: Sequence[int], cu_seqlens: object, rotary: object, num_heads: int, **kwargs: Any
) -> int:
    """2 T D d + 2 T D for heads of d channels: the half of `gated_rela` that sums over keys."""
    return math.prod(v) * (2 * (v[-1] // num_heads) + 2)


register_operator(
    "key_sums", fake=_fake, setup=_setup, backward=_backward, fake_backward=_fake_backward, flops=_flops
)
