"""Depthwise causal convolution with bias and SiLU over packed sequences."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import no_second_derivative, skip_setup
from recgrela.ops.checks import check_cu_seqlens, check_devices, check_operands, sequences_of, to_rows

Activation = Literal["silu"] | None


def causal_conv1d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor, activation: Activation = "silu"
) -> Tensor:
    """The definition of `causal_conv1d` in plain PyTorch, on packed rows."""
    width = weight.shape[1]
    outs = []
    for rows in x.split(cu_seqlens.diff().tolist()):
        padded = F.pad(rows.T[None], (width - 1, 0))  # [1, C, K - 1 + n]
        outs.append(F.conv1d(padded, weight[:, None], bias, groups=x.shape[1])[0].T if len(rows) else rows)
    y = torch.cat(outs) if outs else x
    return F.silu(y) if activation == "silu" else y


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    activation: Activation = "silu",
) -> Tensor:
    """y_i = act(bias + sum_w weight[:, w] * x_{i-K+1+w}) within each sequence, zero before its start.

    Args:
        x: [T, C] rows of all sequences end to end, or [B, L, C] of equal lengths with `cu_seqlens` None.
            Any row stride; float32 or float64 on the CPU.
        weight: [C, K], of the dtype and device of `x`; the last tap meets the current row.
        bias: [C] or None.
        cu_seqlens: int32 or int64 [B + 1] on the device of `x`: sequence b is rows
            cu_seqlens[b] .. cu_seqlens[b + 1].
        activation: "silu" or None.

    Returns:
        A tensor of the shape and dtype of `x`.

    Raises:
        TypeError, ValueError: on operands that do not fit, with their names.
        RuntimeError: on a cu_seqlens that does not start at 0, decreases or does not end at T.
    """
    if activation not in ("silu", None):
        raise ValueError(f"causal_conv1d: activation must be 'silu' or None, got {activation!r}")
    op, shape = "causal_conv1d", x.shape
    cu_seqlens = sequences_of(op, "x", x, cu_seqlens)
    channels = shape[-1]
    check_operands(op, "x", x, weight=(weight, (channels, "K")), bias=(bias, (channels,)))
    check_cu_seqlens(op, cu_seqlens, x)
    if weight.shape[1] < 1:
        raise ValueError(f"{op}: weight has no taps, shape {tuple(weight.shape)}")
    y = torch.ops.recgrela.causal_conv1d(to_rows(x), weight, bias, cu_seqlens, activation == "silu")
    return y.view(shape)


@torch.library.register_fake("recgrela::causal_conv1d")
def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor, silu: bool) -> Tensor:
    check_devices("causal_conv1d", x, weight, bias, cu_seqlens)
    return x.new_empty(x.shape)


@torch.library.register_fake("recgrela::causal_conv1d_backward")
def _fake_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    check_devices("causal_conv1d_backward", dy, x, weight, bias, cu_seqlens)
    return (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        x.new_empty(0) if bias is None else bias.new_empty(bias.shape),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, cu_seqlens, ctx.silu = inputs
    ctx.save_for_backward(x, weight, bias, cu_seqlens)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    bias = ctx.saved_tensors[2]
    dx, dw, db = torch.ops.recgrela.causal_conv1d_backward(dy, *ctx.saved_tensors, ctx.silu)
    return dx, dw, None if bias is None else db, None, None


torch.library.register_autograd("recgrela::causal_conv1d", _backward, setup_context=_setup)
torch.library.register_autograd(
    "recgrela::causal_conv1d_backward", no_second_derivative, setup_context=skip_setup
)
torch.library.register_autocast("recgrela::causal_conv1d", "cpu", torch.float32)
