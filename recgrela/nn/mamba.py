"""Mamba's block (arXiv 2312.00752, section 3.4) on packed rows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.nn.basic import Linear
from recgrela.nn.sequences import Sequences
from recgrela.nn.state import Stateful
from recgrela.nn.streams import conv_history, stream_conv
from recgrela.ops import selective_scan, selective_scan_step
from recgrela.ops.checks import state_dtype


class Mamba(Stateful, nn.Module):
    """Input projection, short convolution, selective state space, gate, output projection.

    Args:
        hidden_size: D.
        state_size: N, the states of each channel.
        kernel_size: the kernel size of the convolution.
        expand: the ratio of inner channels to D.
    """

    def __init__(self, hidden_size: int, state_size: int, kernel_size: int, expand: int) -> None:
        super().__init__()
        inner, self.rank, self.state_size = expand * hidden_size, math.ceil(hidden_size / 16), state_size
        self.in_proj = Linear(hidden_size, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, kernel_size, groups=inner)  # holds the parameters of the op
        # Plain layers: the kernel of `recgrela.ops.linear` takes widths that are multiples of 16 only.
        self.x_proj = nn.Linear(inner, self.rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = Linear(inner, hidden_size, bias=False)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x: [T, D] -> [T, D], or the wanted rows [B, D]."""
        u, z = self.in_proj(x).chunk(2, dim=1)
        state = self.carried(sequences)
        u = stream_conv(self.conv, u, sequences, state)
        dt, b, c = self.x_proj(u).split([self.rank, self.state_size, self.state_size], dim=1)
        delta = F.linear(dt, self.dt_proj.weight)  # the op adds the bias, before its softplus
        a = -self.A_log.exp()
        operands = (u, delta, a, b, c, self.D, z, self.dt_proj.bias)
        if state is None:
            y = selective_scan(*operands, sequences.cu_seqlens)
        elif sequences.is_step:
            y = selective_scan_step(*operands, state["scan"])
        else:
            y, after = selective_scan(
                *operands, sequences.cu_seqlens, initial_state=state["scan"], return_state=True
            )
            state["scan"].copy_(after)
        return self.out_proj(sequences.select(y))

    def init_state(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        scan = like.new_zeros(batch, *self.A_log.shape, dtype=state_dtype(like.dtype))
        return {"history": conv_history(self.conv, batch, like), "scan": scan}
