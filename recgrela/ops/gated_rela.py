"""Gated rotary-enhanced linear attention (RecGRELA, arXiv 2506.13315), fused into one operator."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import no_second_derivative, skip_setup
from recgrela.ops.causal_conv1d import causal_conv1d_reference
from recgrela.ops.checks import check_cu_seqlens, check_devices, check_operands, sequences_of, to_rows
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
    """The definition of `gated_rela` in plain PyTorch, on packed rows, one sequence after another.

    elu(x) + 1 loses all digits in float32 below about -17, where the kernels keep exp(x): compare in float64.
    """
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
            None. Any row stride (two halves of one projection need no copy; a last dimension that is not
            contiguous is copied); one dtype and device; float32 or float64 on the CPU, where autocast
            computes in float32. With `k` None, `q` is [..., 2 D]: q and k side by side, as one projection
            makes them, so that their gradients need no copy either.
        g: the gate before its SiLU, shaped like `v`; None leaves the gate out.
        cu_seqlens: int32 or int64 [B + 1] on the same device: sequence b is rows
            cu_seqlens[b] .. cu_seqlens[b + 1]. Empty sequences are allowed.
        num_heads: divides D into heads of an even width.
        causal: prefix sums (row i sees rows <= i) or the whole sequence.
        rotary: [P, D / 2, 2] from `rotary_table`, P at least the longest sequence; None: no rotation. It gets
            no gradient.
        conv_weight, conv_bias: [D, K] and [D] of the local shortcut; None leaves it out.
        eps: added to the denominator.

    Returns:
        y, of the shape and dtype of `v`.

    Raises:
        TypeError, ValueError: on operands that do not fit, with their names.
        RuntimeError: on a cu_seqlens that does not start at 0, decreases or does not end at T, or a
            sequence longer than the rotary table.
        NotImplementedError: from a second derivative; use `gated_rela_reference`.
    """
    op, shape = "gated_rela", v.shape
    cu_seqlens = sequences_of(op, "v", v, cu_seqlens)
    *rows, d = shape
    if num_heads < 1 or d % num_heads or d // num_heads % 2:
        raise ValueError(f"{op}: num_heads={num_heads} must divide the width {d} into heads of an even width")
    if (conv_weight is None) != (conv_bias is None):
        raise ValueError(f"{op}: conv_weight and conv_bias go together")
    check_operands(
        op,
        "v",
        v,
        q=(q, (*rows, 2 * d if k is None else d)),  # with k None, q and k side by side
        k=(k, (*rows, d)),
        g=(g, (*rows, d)),
        rotary=(rotary, ("P", d // 2, 2)),
        conv_weight=(conv_weight, (d, "K")),
        conv_bias=(conv_bias, (d,)),
    )
    check_cu_seqlens(op, cu_seqlens, v)
    if conv_weight is not None and conv_weight.shape[1] < 1:
        raise ValueError(f"{op}: conv_weight has no taps, shape {tuple(conv_weight.shape)}")
    y = torch.ops.recgrela.gated_rela(
        to_rows(q),
        None if k is None else to_rows(k),
        to_rows(v),
        None if g is None else to_rows(g),
        cu_seqlens,
        rotary,
        conv_weight,
        conv_bias,
        num_heads,
        causal,
        float(eps),
    )
    return y.view(shape)


@torch.library.register_fake("recgrela::gated_rela")
def _fake(q: Tensor, k: Tensor | None, v: Tensor, *args: Any) -> Tensor:
    check_devices("gated_rela", q, k, v, *(x for x in args if isinstance(x, Tensor)))
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
    check_devices("gated_rela_backward", dy, q, k, v, g, cu_seqlens, rotary, conv_weight, conv_bias)

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
