"""Mamba's block (arXiv 2312.00752, section 3.4) on packed rows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.nn.sequences import Sequences
from recgrela.ops import causal_conv1d, selective_scan


class Mamba(nn.Module):
    """Projection, short convolution, selective state space, gate, projection.

    Args:
        hidden_size: D.
        state_size: states N of each channel.
        conv_width: taps of the convolution.
        expand: channels I = expand D.
    """

    def __init__(self, hidden_size: int, state_size: int, conv_width: int, expand: int) -> None:
        super().__init__()
        inner, self.rank, self.state_size = expand * hidden_size, math.ceil(hidden_size / 16), state_size
        self.in_proj = nn.Linear(hidden_size, 2 * inner, bias=False)
        # Only its parameters are used: the op convolves.
        self.conv = nn.Conv1d(inner, inner, conv_width, groups=inner)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, hidden_size, bias=False)

    def forward(self, x: Tensor, sequences: Sequences, rows: Tensor | None = None) -> Tensor:
        """x: [T, D] -> [T, D]; or with `rows` [B], one of each sequence, -> [B, D]."""
        u, z = self.in_proj(x).chunk(2, dim=1)
        u = causal_conv1d(u, self.conv.weight.squeeze(1), self.conv.bias, sequences.cu_seqlens)
        dt, b, c = self.x_proj(u).split([self.rank, self.state_size, self.state_size], dim=1)
        delta = F.linear(dt, self.dt_proj.weight)  # its bias goes with the softplus
        a = -self.A_log.exp()
        y = selective_scan(u, delta, a, b, c, self.D, z, self.dt_proj.bias, sequences.cu_seqlens)
        return self.out_proj(y if rows is None else y[rows])
