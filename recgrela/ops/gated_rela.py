"""Gated rotary-enhanced linear attention (RecGRELA, arXiv 2506.13315), fused into one operator."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import no_second_derivative, skip_setup
from recgrela.ops.causal_conv1d import causal_conv1d_reference
from recgrela.ops.checks import check_cu_seqlens, check_like, check_rows, equal_lengths
from recgrela.ops.rotary import rotate


def gated_rela_reference(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    g: Tensor | None,
    cu_seqlens: Tensor,
    *,
    num_heads: int,
    causal: bool,
    rotary: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """The definition of `gated_rela` in plain PyTorch, on packed rows, one sequence after another."""
    if k is None:
        q, k = q.chunk(2, dim=-1)
    outs = []
    for q_b, k_b, v_b in zip(*(x.split(cu_seqlens.diff().tolist()) for x in (q, k, v)), strict=True):
        n = len(q_b)
        fq, fk = F.elu(q_b) + 1, F.elu(k_b) + 1  # [n, D]
        rq, rk = (fq, fk) if rotary is None else (rotate(fq, rotary), rotate(fk, rotary))
        rq, rk, fq, fk, v_h = (x.unflatten(1, (num_heads, -1)).transpose(0, 1) for x in (rq, rk, fq, fk, v_b))
        # The weights of row i: 1 / (i + 1) for every j <= i, or 1 / n for every j.
        weights = q.new_ones(n, n).tril() if causal else q.new_ones(n, n)
        weights = weights / weights.sum(1, keepdim=True)
        numerator = (rq @ rk.mT * weights) @ v_h  # [H, n, d]
        denominator = (fq @ fk.mT * weights).sum(-1, keepdim=True)  # not rotated
        outs.append((numerator / (denominator + eps)).transpose(0, 1).flatten(1))
    o = torch.cat(outs) if outs else torch.zeros_like(v)
    if conv_weight is not None:
        o = o + causal_conv1d_reference(v, conv_weight, conv_bias, cu_seqlens, "silu")
    return o if g is None else o * F.silu(g)


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
) -> Tensor:
    """Linear attention with rotary encoding, a causal-convolution shortcut and a gate, in one pass.

    With phi(t) = elu(t) + 1, R_i the rotation by position i over the whole width, and per head::

        S_i = mean_j (R_j phi(k_j))^T v_j        z_i = mean_j phi(k_j)       j <= i (causal) or all j
        o_i = (R_i phi(q_i)) S_i / (phi(q_i) . z_i + eps)
        y_i = (o_i + SiLU(conv(v)_i)) * SiLU(g_i)

    Linear in the number of rows, in time and memory. The backward recomputes from the operands and is
    deterministic, whatever the number of threads.

    Args:
        q, k, v: [T, D] rows of all sequences end to end, or [B, L, D] of equal lengths with `cu_seqlens`
            None. Any row stride (two halves of one projection need no copy); one dtype and device; float32
            or float64 on the CPU. With `k` None, `q` is [..., 2 D]: q and k side by side, as one projection
            makes them, so that their gradients need no copy either.
        g: the gate before its SiLU, shaped like `v`; None leaves the gate out.
        cu_seqlens: int32 or int64 [B + 1] on the same device: sequence b is rows
            cu_seqlens[b] .. cu_seqlens[b + 1]. Empty sequences are allowed.
        num_heads: divides D into heads of an even width.
        causal: prefix sums (row i sees rows <= i) or the whole sequence.
        rotary: [P, D / 2, 2] from `rotary_table`, P at least the longest sequence; None: no rotation.
        conv_weight, conv_bias: [D, K] and [D] of the local shortcut; None leaves it out.
        eps: added to the denominator.

    Returns:
        y, of the shape and dtype of `v`.

    Raises:
        TypeError, ValueError: on operands that do not fit, with their names.
        RuntimeError: on a cu_seqlens that does not start at 0, decreases or does not end at T, or a
            sequence longer than the rotary table.
    """
    if v.dim() == 3 and q.dim() == 3 and cu_seqlens is None:
        y = gated_rela(
            q.flatten(0, 1),
            None if k is None else k.flatten(0, 1),
            v.flatten(0, 1),
            None if g is None else g.flatten(0, 1),
            equal_lengths(v.shape[0], v.shape[1], v.device),
            num_heads=num_heads,
            causal=causal,
            rotary=rotary,
            conv_weight=conv_weight,
            conv_bias=conv_bias,
            eps=eps,
        )
        return y.view(v.shape)
    if cu_seqlens is None:
        raise ValueError("gated_rela: packed rows [T, D] need cu_seqlens")
    _check(q, k, v, g, cu_seqlens, num_heads, rotary, conv_weight, conv_bias)
    return torch.ops.recgrela.gated_rela(
        q, k, v, g, cu_seqlens, rotary, conv_weight, conv_bias, num_heads, causal, float(eps)
    )


def _check(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    g: Tensor | None,
    cu_seqlens: Tensor,
    num_heads: int,
    rotary: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
) -> None:
    op = "gated_rela"
    if not torch.is_autocast_enabled(v.device.type):  # which makes the dtypes one
        check_rows(op, v=v, k=k, g=g, **({} if k is None else {"q": q}))
        check_like(op, "v", v, q=q, rotary=rotary, conv_weight=conv_weight, conv_bias=conv_bias)
    if k is None and q.shape != (v.shape[0], 2 * v.shape[1]):
        raise ValueError(
            f"{op}: without k, q must be [{v.shape[0]}, {2 * v.shape[1]}], q and k side by side; got shape "
            f"{tuple(q.shape)}"
        )
    check_cu_seqlens(op, cu_seqlens, v)
    d = v.shape[1]
    if num_heads < 1 or d % num_heads or d // num_heads % 2:
        raise ValueError(f"{op}: num_heads={num_heads} must divide the width {d} into heads of an even width")
    if rotary is not None and (rotary.dim() != 3 or rotary.shape[1:] != (d // 2, 2)):
        raise ValueError(f"{op}: rotary must be [P, {d // 2}, 2], got shape {tuple(rotary.shape)}")
    if (conv_weight is None) != (conv_bias is None):
        raise ValueError(f"{op}: conv_weight and conv_bias go together")
    if conv_weight is not None and conv_bias is not None:
        if conv_weight.dim() != 2 or conv_weight.shape[0] != d or conv_weight.shape[1] < 1:
            raise ValueError(f"{op}: conv_weight must be [{d}, K], got shape {tuple(conv_weight.shape)}")
        if conv_bias.shape != (d,):
            raise ValueError(f"{op}: conv_bias must be [{d}], got shape {tuple(conv_bias.shape)}")


@torch.library.register_fake("recgrela::gated_rela")
def _fake(q: Tensor, k: Tensor | None, v: Tensor, *args: Any) -> Tensor:
    return v.new_empty(v.shape)


@torch.library.register_fake("recgrela::gated_rela_backward")
def _fake_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    g: Tensor | None,
    cu_seqlens: Tensor,
    rotary: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    *args: Any,
) -> tuple[Tensor, ...]:
    def like(x: Tensor | None) -> Tensor:
        return v.new_empty(0) if x is None else v.new_empty(x.shape)

    return like(q), like(k), like(v), like(g), like(conv_weight), like(conv_bias)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_heads, ctx.causal, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    _, k, _, g, _, _, conv_weight, _ = ctx.saved_tensors
    dq, dk, dv, dg, dw, db = torch.ops.recgrela.gated_rela_backward(
        dy, *ctx.saved_tensors, ctx.num_heads, ctx.causal, ctx.eps
    )
    present = (k is not None, g is not None, conv_weight is not None)
    dk, dg, dw = (grad if there else None for grad, there in zip((dk, dg, dw), present, strict=True))
    return dq, dk, dv, dg, None, None, dw, None if dw is None else db, None, None, None


torch.library.register_autograd("recgrela::gated_rela", _backward, setup_context=_setup)
torch.library.register_autograd(
    "recgrela::gated_rela_backward", no_second_derivative, setup_context=skip_setup
)
torch.library.register_autocast("recgrela::gated_rela", "cpu", torch.float32)
