"""Operators of a module that may follow a state: a convolution and a scan, as a whole or a step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from recgrela.nn.sequences import Sequences
from recgrela.ops import causal_conv1d, causal_conv1d_step, linear_scan, linear_scan_step


def conv_history(conv: nn.Conv1d, batch: int, like: Tensor) -> Tensor:
    """The rows before the first of `batch` sequences, zeros [B, K - 1, C]."""
    return like.new_zeros(batch, conv.kernel_size[0] - 1, conv.in_channels)


def stream_conv(
    conv: nn.Conv1d, x: Tensor, sequences: Sequences, state: Mapping[str, Tensor] | None
) -> Tensor:
    """The causal convolution with SiLU of rows x [T, C]; updates `state["history"]` in place, if given."""
    weight, bias = conv.weight.squeeze(1), conv.bias
    if state is None:
        return causal_conv1d(x, weight, bias, sequences.cu_seqlens)
    if sequences.is_step:
        return causal_conv1d_step(x, weight, bias, state["history"])
    y, history = causal_conv1d(
        x,
        weight,
        bias,
        sequences.cu_seqlens,
        initial_history=state["history"],
        return_final_history=True,
    )
    state["history"].copy_(history)
    return y


def stream_scan(x: Tensor, a: Tensor, sequences: Sequences, state: Mapping[str, Tensor]) -> Tensor:
    """The linear scan of rows x [T, C] that follow `state["scan"]`, which is updated in place."""
    if sequences.is_step:
        return linear_scan_step(x, a, state["scan"])
    h, after = linear_scan(x, a, sequences.cu_seqlens, initial_state=state["scan"], return_state=True)
    state["scan"].copy_(after)
    return h
