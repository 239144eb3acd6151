"""The definitions of `gated_rela` and `gated_rela_last` in plain PyTorch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops.causal_conv1d import causal_conv1d_reference, last_rows
from recgrela.ops.checks import lengths_of
from recgrela.ops.rotary import rotate


class RelaState(NamedTuple):
    """State carried between chunks of a sequence, so that their results equal those of the whole sequence.

    Attributes:
        kv_state: [B, H, d + 1, d], float32 (float64 for float64 operands). Rows 0 .. d - 1: the sum of
            (R phi(k))^T v, key channels by value channels; row d: the sum of phi(k).
        history: [B, K - 1, D] of the operands' dtype, the last rows of v, oldest first, zero before the first
            row; K - 1 is 0 without a convolution.
        position: [B] int64, the position of the next row, which is the number of rows so far.
    """

    kv_state: Tensor
    history: Tensor
    position: Tensor


def phi(x: Tensor) -> Tensor:
    """elu(x) + 1, computed as exp(x) below 0, where the sum would cancel."""
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


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
    initial_state: RelaState | None = None,
    return_state: bool = False,
) -> Any:
    """The definition of `gated_rela` in plain PyTorch, on packed rows, one sequence after another.

    Returns:
        y [T, D]; with `return_state`, y and a RelaState.
    """
    if k is None:
        q, k = q.chunk(2, dim=-1)
    d, lengths = v.shape[1] // num_heads, lengths_of("gated_rela", cu_seqlens, v.shape[0])
    kernel_size = 1 if conv_weight is None else conv_weight.shape[1]
    if initial_state is None:
        initial_state = RelaState(
            v.new_zeros(len(lengths), num_heads, d + 1, d),
            v.new_zeros(len(lengths), kernel_size - 1, v.shape[1]),
            cu_seqlens.new_zeros(len(lengths), dtype=torch.int64),
        )
    outs, finals = [], []
    rows = (x.split(lengths) for x in (q, k, v))
    for q_b, k_b, v_b, kv_state, start in zip(
        *rows, initial_state.kv_state, initial_state.position, strict=True
    ):
        n = len(q_b)
        fq, fk = phi(q_b), phi(k_b)  # [n, D]
        angles = None if rotary is None else rotary[int(start) :]
        rq, rk = (fq, fk) if angles is None else (rotate(fq, angles), rotate(fk, angles))
        rq, rk, fq, fk, v_h = (x.unflatten(1, (num_heads, -1)).transpose(0, 1) for x in (rq, rk, fq, fk, v_b))
        # Row i attends to rows j <= i, or to all; both sums are divided by the number of attended rows.
        mask = q.new_ones(n, n).tril() if causal else q.new_ones(n, n)
        attended = mask.sum(1, keepdim=True) + start
        numerator = (rq @ rk.mT * mask) @ v_h + rq @ kv_state[:, :d]  # [H, n, d]
        denominator = (fq @ fk.mT * mask).sum(-1, keepdim=True) + fq @ kv_state[:, d:].mT  # not rotated
        outs.append((numerator / attended / (denominator / attended + eps)).transpose(0, 1).flatten(1))
        finals.append(kv_state + torch.cat([rk.mT @ v_h, fk.sum(1, keepdim=True)], dim=1))
    o = torch.cat(outs) if outs else torch.zeros_like(v)
    if conv_weight is not None:
        history = initial_state.history
        shortcut = causal_conv1d_reference(v, conv_weight, conv_bias, cu_seqlens, "silu", history)
        assert isinstance(shortcut, Tensor)
        o = o + shortcut
    y = o if g is None else o * F.silu(g)
    if not return_state:
        return y
    return y, RelaState(
        torch.stack(finals) if finals else initial_state.kv_state,
        last_rows(v, kernel_size - 1, cu_seqlens, initial_state.history),
        initial_state.position + cu_seqlens.diff(),
    )


def gated_rela_last_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    cu_seqlens: Tensor,
    rows: Tensor,
    **options: Any,
) -> Tensor:
    """The definition of `gated_rela_last`: the given rows of the bidirectional `gated_rela_reference`.

    The row of an empty sequence is zeros.

    Args:
        options: num_heads, rotary, conv_weight, conv_bias and eps of `gated_rela_reference`.
    """
    present = cu_seqlens.diff() > 0
    rows = rows[present]

    def scatter(x: Tensor) -> Tensor:
        return torch.zeros_like(v).index_put((rows,), x[present])

    g_rows = None if g is None else scatter(g)
    y = gated_rela_reference(scatter(q), k, v, g_rows, cu_seqlens, causal=False, **options)
    return torch.zeros_like(q).index_put((present,), y[rows])
