"""Gated rotary-enhanced linear attention (RecGRELA, arXiv 2506.13315), fused into one operator."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import no_second_derivative, skip_setup
from recgrela.ops.causal_conv1d import causal_conv1d_reference, last_values
from recgrela.ops.checks import (
    autocast_enabled,
    cast_for_autocast,
    check_cu_seqlens,
    check_devices,
    check_operands,
    number_of_taps,
    sequences_of,
    state_dtype,
    to_rows,
)
from recgrela.ops.rotary import rotate

CUDA_HEAD_WIDTHS = (8, 16, 32, 64, 128)
CUDA_MOST_TAPS = 4


class RelaState(NamedTuple):
    """What the causal form needs of the rows before: begin from it, and a sequence goes on
    as if it were whole.

    Attributes:
        sums: [B, H, d + 1, d], float32 (float64 for float64 operands). Rows 0 .. d - 1: the sum of
            (R phi(k))^T v, key channels by value channels; row d: the sum of phi(k).
        values: [B, K - 1, D] of the operands' dtype, the last rows of v, oldest first, zero before the first;
            K - 1 is 0 without a convolution.
        position: [B] int64, that of the next row: how many there were.
    """

    sums: Tensor
    values: Tensor
    position: Tensor


def check_heads(op: str, v: Tensor, num_heads: int) -> None:
    """`num_heads` must divide the width of v into heads that its device's kernels take. Raises ValueError."""
    d = v.shape[-1]
    if num_heads < 1 or d < 1 or d % num_heads or d // num_heads % 2:
        raise ValueError(f"{op}: num_heads={num_heads} must divide the width {d} into heads of an even width")
    if v.is_cuda and (head := d // num_heads) not in CUDA_HEAD_WIDTHS:
        raise ValueError(f"{op}: on cuda a head must have {CUDA_HEAD_WIDTHS} channels, got {head}")


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
) -> Tensor | tuple[Tensor, RelaState]:
    """The definition of `gated_rela` in plain PyTorch, on packed rows, one sequence after another.

    elu(x) + 1 loses all digits in float32 below about -17, where the kernels keep exp(x): compare in float64.
    """
    if k is None:
        q, k = q.chunk(2, dim=-1)
    d, num_seqs = v.shape[1] // num_heads, len(cu_seqlens) - 1
    history = 0 if conv_weight is None else conv_weight.shape[1] - 1
    if initial_state is None:
        initial_state = RelaState(
            v.new_zeros(num_seqs, num_heads, d + 1, d),
            v.new_zeros(num_seqs, history, v.shape[1]),
            cu_seqlens.new_zeros(num_seqs, dtype=torch.int64),
        )
    outs, sums = [], []
    rows = (x.split(cu_seqlens.diff().tolist()) for x in (q, k, v))
    for q_b, k_b, v_b, sums_b, before in zip(*rows, initial_state.sums, initial_state.position, strict=True):
        n = len(q_b)
        fq, fk = F.elu(q_b) + 1, F.elu(k_b) + 1  # [n, D]
        angles = None if rotary is None else rotary[int(before) :]
        rq, rk = (fq, fk) if angles is None else (rotate(fq, angles), rotate(fk, angles))
        rq, rk, fq, fk, v_h = (x.unflatten(1, (num_heads, -1)).transpose(0, 1) for x in (rq, rk, fq, fk, v_b))
        # Row i sees every j <= i, or every j; both sums are divided by their number.
        seen = q.new_ones(n, n).tril() if causal else q.new_ones(n, n)
        count = seen.sum(1, keepdim=True) + before
        numerator = (rq @ rk.mT * seen) @ v_h + rq @ sums_b[:, :d]  # [H, n, d]
        denominator = (fq @ fk.mT * seen).sum(-1, keepdim=True) + fq @ sums_b[:, d:].mT  # not rotated
        outs.append((numerator / count / (denominator / count + eps)).transpose(0, 1).flatten(1))
        sums.append(sums_b + torch.cat([rk.mT @ v_h, fk.sum(1, keepdim=True)], dim=1))
    o = torch.cat(outs) if outs else torch.zeros_like(v)
    if conv_weight is not None:
        shortcut = causal_conv1d_reference(
            v, conv_weight, conv_bias, cu_seqlens, "silu", initial_state.values
        )
        o = o + cast(Tensor, shortcut)
    y = o if g is None else o * F.silu(g)
    if not return_state:
        return y
    return y, RelaState(
        torch.stack(sums) if sums else initial_state.sums,
        last_values(v, history, cu_seqlens, initial_state.values),
        initial_state.position + cu_seqlens.diff(),
    )


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

    Linear in the number of rows, in time and memory. The backward recomputes from the operands and is
    deterministic, whatever the number of threads.

    Args:
        q, k, v: [T, D] rows of all sequences end to end, or [B, L, D] of equal lengths with `cu_seqlens`
            None. Any row stride (two halves of one projection need no copy; a last dimension that is not
            contiguous, or on CUDA rows that do not begin at multiples of 16 bytes, are copied); one dtype and
            device. On the CPU float32 or float64, in which autocast computes too (float32); on CUDA float32,
            float16 or bfloat16, with sums in float32. With `k` None, `q` is [..., 2 D]: q and k side by side,
            as one projection makes them, so that their gradients need no copy either.
        g: the gate before its SiLU, shaped like `v`; None leaves the gate out.
        cu_seqlens: int32 or int64 [B + 1] on the same device: sequence b is rows
            cu_seqlens[b] .. cu_seqlens[b + 1]. Empty sequences are allowed.
        num_heads: divides D into heads of an even width, on CUDA one of 8, 16, 32, 64 and 128.
        causal: prefix sums (row i sees rows <= i) or the whole sequence.
        rotary: [P, D / 2, 2] from `rotary_table`, P at least the longest sequence; float64 for float64
            operands, else float32. None: no rotation. It gets no gradient.
        conv_weight, conv_bias: [D, K] and [D] of the local shortcut, on CUDA of up to 4 taps; None leaves it
            out.
        eps: added to the denominator.
        initial_state: what the rows before left, for the causal form; positions go on from its own.
        return_state: also return the state behind the last row of each sequence.

    Returns:
        y, of the shape and dtype of `v`; with `return_state`, y and the state.

    Raises:
        TypeError, ValueError: on operands that do not fit, with their names.
        RuntimeError: on a cu_seqlens that does not start at 0, decreases or does not end at T, or a
            sequence longer than the rotary table. On CUDA, where nothing waits for the device, this is a
            device-side assertion that a later call reports.
        NotImplementedError: from a second derivative; use `gated_rela_reference`.
    """
    op, shape = "gated_rela", v.shape
    cu_seqlens = sequences_of(op, "v", v, cu_seqlens)
    *rows, d = shape
    check_heads(op, v, num_heads)
    if (conv_weight is None) != (conv_bias is None):
        raise ValueError(f"{op}: conv_weight and conv_bias go together")
    if not causal and (initial_state is not None or return_state):
        raise ValueError(f"{op}: only the causal form has a state")
    check_cu_seqlens(op, cu_seqlens, v)
    head, batch = d // num_heads, cu_seqlens.shape[0] - 1
    taps = 0 if conv_weight is None else number_of_taps(op, "conv_weight", conv_weight, d)
    if v.is_cuda and taps > CUDA_MOST_TAPS:
        raise ValueError(f"{op}: on cuda conv_weight has at most {CUDA_MOST_TAPS} taps, got {taps}")
    sums, values, position = (None, None, None) if initial_state is None else initial_state
    if initial_state is not None and any(x is None for x in initial_state):
        raise ValueError(f"{op}: initial_state lacks one of {', '.join(RelaState._fields)}")
    q, k, v, g, conv_weight, conv_bias, values = cast_for_autocast(  # type: ignore[assignment]
        v.device.type, q, k, v, g, conv_weight, conv_bias, values
    )
    if autocast_enabled(v.device.type):  # kept wide
        rotary, sums = (None if x is None else x.to(state_dtype(v.dtype)) for x in (rotary, sums))
    parts: dict[str, Any] = {
        "initial_state.sums": (sums, (batch, num_heads, head + 1, head), state_dtype(v.dtype)),
        "initial_state.values": (values, (batch, max(taps - 1, 0), d)),
        "initial_state.position": (position, (batch,), torch.int64),
    }
    check_operands(
        op,
        "v",
        v,
        q=(q, (*rows, 2 * d if k is None else d)),  # with k None, q and k side by side
        k=(k, (*rows, d)),
        g=(g, (*rows, d)),
        rotary=(rotary, ("P", d // 2, 2), state_dtype(v.dtype)),
        conv_weight=(conv_weight, (d, "K")),
        conv_bias=(conv_bias, (d,)),
        **parts,
    )
    y, *state = torch.ops.recgrela.gated_rela(
        to_rows(q),
        None if k is None else to_rows(k),
        to_rows(v),
        None if g is None else to_rows(g),
        cu_seqlens,
        rotary,
        conv_weight,
        conv_bias,
        sums,
        values,
        position,
        num_heads,
        causal,
        float(eps),
        return_state,
    )
    return (y.view(shape), RelaState(*state)) if return_state else y.view(shape)


@torch.library.register_fake("recgrela::gated_rela")
def _fake(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    g: Tensor | None,
    cu_seqlens: Tensor,
    rotary: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    sums: Tensor | None,
    values: Tensor | None,
    position: Tensor | None,
    num_heads: int,
    causal: bool,
    eps: float,
    return_state: bool,
) -> tuple[Tensor, ...]:
    operands = (q, k, v, g, cu_seqlens, rotary, conv_weight, conv_bias, sums, values, position)
    check_devices("gated_rela", *operands)
    if not return_state:
        return v.new_empty(v.shape), *(
            v.new_empty(0, dtype=t) for t in (state_dtype(v.dtype), None, torch.int64)
        )
    batch, d = cu_seqlens.shape[0] - 1, v.shape[1]
    head, history = d // num_heads, 0 if conv_weight is None else conv_weight.shape[1] - 1
    return (
        v.new_empty(v.shape),
        v.new_empty(batch, num_heads, head + 1, head, dtype=state_dtype(v.dtype)),
        v.new_empty(batch, history, d),
        v.new_empty(batch, dtype=torch.int64),
    )


@torch.library.register_fake("recgrela::gated_rela_backward")
def _fake_backward(
    dy: Tensor,
    d_sums: Tensor | None,
    d_values: Tensor | None,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    g: Tensor | None,
    cu_seqlens: Tensor,
    rotary: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    sums: Tensor | None,
    values: Tensor | None,
    position: Tensor | None,
    *args: Any,
) -> tuple[Tensor, ...]:
    operands = (q, k, v, g, cu_seqlens, rotary, conv_weight, conv_bias, sums, values, position)
    check_devices("gated_rela_backward", dy, d_sums, d_values, *operands)

    def like(x: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
        return v.new_empty(0 if x is None else x.shape, dtype=dtype)

    return *map(like, (q, k, v, g, conv_weight, conv_bias)), like(sums, state_dtype(v.dtype)), like(values)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.num_heads, ctx.causal, ctx.eps, ctx.has_state = inputs
    ctx.save_for_backward(*tensors)
    ctx.mark_non_differentiable(output[3])
    ctx.set_materialize_grads(False)  # most calls use no gradient of the state


def _backward(
    ctx: Any, dy: Tensor | None, d_sums: Tensor | None, d_values: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(tensors[2])
    if not ctx.has_state:
        d_sums = d_values = None
    dq, dk, dv, dg, dw, db, d_sums0, d_values0 = torch.ops.recgrela.gated_rela_backward(
        dy, d_sums, d_values, *tensors, ctx.num_heads, ctx.causal, ctx.eps
    )
    grads = (dq, dk, dv, dg, None, None, dw, db, d_sums0, d_values0, None)
    present = (grad if x is not None else None for grad, x in zip(grads, tensors, strict=True))
    return *present, None, None, None, None


torch.library.register_autograd("recgrela::gated_rela", _backward, setup_context=_setup)
torch.library.register_autograd(
    "recgrela::gated_rela_backward", no_second_derivative, setup_context=skip_setup
)
