"""`gated_rela` of one row of each sequence: what a model needs that predicts from its last position."""

from __future__ import annotations

from typing import Any

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
    number_of_taps,
    state_dtype,
)
from recgrela.ops.gated_rela import check_heads, gated_rela_reference
from recgrela.ops.rotary import rotate


def gated_rela_last_reference(
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
    """The definition of `gated_rela_last`: those rows of the bidirectional `gated_rela_reference`."""

    def spread(x: Tensor) -> Tensor:
        return torch.zeros_like(v).index_put((rows,), x)

    y = gated_rela_reference(
        spread(q),
        k,
        v,
        None if g is None else spread(g),
        cu_seqlens,
        num_heads=num_heads,
        causal=False,
        rotary=rotary,
        conv_weight=conv_weight,
        conv_bias=conv_bias,
        eps=eps,
    )
    assert isinstance(y, Tensor)
    return y[rows]


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
    """`gated_rela` of one row of each sequence, which sees the whole sequence.

    The others are not computed: they need no queries, gates or outputs, only keys and values. For the last
    row of a sequence the causal and the bidirectional form are the same.

    Args:
        q: [B, D], the row's query.
        k, v: [T, D], keys and values of all rows, packed; see `gated_rela` for dtypes and strides.
        g: [B, D], the row's gate before its SiLU; None leaves the gate out.
        cu_seqlens: int32 or int64 [B + 1]; here no sequence may be empty.
        rows: [B] int64, the row within 0 .. T - 1, one of its own sequence (not checked).
        num_heads, rotary, conv_weight, conv_bias, eps: as for `gated_rela`.

    Returns:
        y [B, D] of the dtype of `v`.

    Raises:
        TypeError, ValueError, RuntimeError: as `gated_rela`.
        NotImplementedError: from a second derivative; use `gated_rela_last_reference`.
    """
    op = "gated_rela_last"
    if v.dim() != 2:
        raise ValueError(f"{op}: v must be [T, D], got shape {tuple(v.shape)}")
    d = v.shape[1]
    check_heads(op, v, num_heads)
    if (conv_weight is None) != (conv_bias is None):
        raise ValueError(f"{op}: conv_weight and conv_bias go together")
    taps = 0 if conv_weight is None else number_of_taps(op, "conv_weight", conv_weight, d)
    check_cu_seqlens(op, cu_seqlens, v)
    batch, head = cu_seqlens.shape[0] - 1, d // num_heads
    q, k, v, g, conv_weight, conv_bias = cast_for_autocast(  # type: ignore[assignment]
        v.device.type, q, k, v, g, conv_weight, conv_bias
    )
    wide = state_dtype(v.dtype)
    if rotary is not None and autocast_enabled(v.device.type):
        rotary = rotary.to(wide)
    check_operands(
        op,
        "v",
        v,
        q=(q, (batch, d)),
        k=(k, tuple(v.shape)),
        g=(g, (batch, d)),
        rows=(rows, (batch,), torch.int64),
        rotary=(rotary, ("P", d // 2, 2), wide),
        conv_weight=(conv_weight, (d, "K")),
        conv_bias=(conv_bias, (d,)),
    )
    sums = torch.ops.recgrela.key_sums(k, v, cu_seqlens, rotary, num_heads)  # [B, H, d + 1, d]
    with torch.autocast(v.device.type, enabled=False):
        start = cu_seqlens[:-1]
        q = q.to(wide)
        feature = torch.where(q > 0, q + 1, q.clamp(max=0).exp())  # elu + 1 without its cancellation
        rotated = feature if rotary is None else rotate(feature, rotary[rows - start])
        numerator = rotated.view(batch, num_heads, 1, head) @ sums[:, :, :-1]  # [B, H, 1, d]
        denominator = (feature.view(batch, num_heads, head) * sums[:, :, -1]).sum(-1)  # [B, H]
        denominator = denominator + eps * cu_seqlens.diff()[:, None]
        y = (numerator[:, :, 0] / denominator[..., None]).flatten(1)
        if conv_weight is not None and conv_bias is not None:
            index = rows[:, None] + torch.arange(1 - taps, 1, device=rows.device)  # [B, K]
            values = v[index.clamp(min=0)].to(wide)
            values = torch.where((index >= start[:, None])[..., None], values, 0)
            y = y + F.silu((values * conv_weight.T.to(wide)).sum(1) + conv_bias.to(wide))
        if g is not None:
            y = y * F.silu(g.to(wide))
        return y.to(v.dtype)


def _key_sums_cuda(k: Tensor, v: Tensor, cu_seqlens: Tensor, rotary: Tensor | None, num_heads: int) -> Tensor:
    """By the whole op, whose outputs are not used: its state is all that is wanted."""
    absent = (None,) * 3
    return torch.ops.recgrela.gated_rela(
        k, k, v, None, cu_seqlens, rotary, None, None, *absent, num_heads, True, 1e-6, True
    )[1]


def _key_sums_backward_cuda(
    d_sums: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, rotary: Tensor | None, num_heads: int
) -> tuple[Tensor, Tensor]:
    absent = (None,) * 5  # convolution and initial state
    _, dk, dv, *_ = torch.ops.recgrela.gated_rela_backward(
        torch.zeros_like(v), d_sums, None, k, k, v, None, cu_seqlens, rotary, *absent, num_heads, True, 1e-6
    )
    return dk, dv


torch.library.impl("recgrela::key_sums", "CUDA")(_key_sums_cuda)
torch.library.impl("recgrela::key_sums_backward", "CUDA")(_key_sums_backward_cuda)


@torch.library.register_fake("recgrela::key_sums")
def _fake(k: Tensor, v: Tensor, cu_seqlens: Tensor, rotary: Tensor | None, num_heads: int) -> Tensor:
    check_devices("key_sums", k, v, cu_seqlens, rotary)
    head = v.shape[1] // num_heads
    return v.new_empty(cu_seqlens.shape[0] - 1, num_heads, head + 1, head, dtype=state_dtype(v.dtype))


@torch.library.register_fake("recgrela::key_sums_backward")
def _fake_backward(
    d_sums: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, rotary: Tensor | None, num_heads: int
) -> tuple[Tensor, Tensor]:
    check_devices("key_sums_backward", d_sums, k, v, cu_seqlens, rotary)
    return v.new_empty(v.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_heads = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, d_sums: Tensor) -> tuple[Tensor | None, ...]:
    dk, dv = torch.ops.recgrela.key_sums_backward(d_sums, *ctx.saved_tensors, ctx.num_heads)
    return dk, dv, None, None, None


torch.library.register_autograd("recgrela::key_sums", _backward, setup_context=_setup)
torch.library.register_autograd("recgrela::key_sums_backward", no_second_derivative, setup_context=skip_setup)
