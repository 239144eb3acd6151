"""Mamba's block (arXiv 2312.00752, section 3.4) on packed rows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.nn.basic import Linear
from recgrela.nn.sequences import Sequences
from recgrela.ops import causal_conv1d, selective_scan


class Mamba(nn.Module):
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
        u = causal_conv1d(u, self.conv.weight.squeeze(1), self.conv.bias, sequences.cu_seqlens)
        dt, b, c = self.x_proj(u).split([self.rank, self.state_size, self.state_size], dim=1)
        delta = F.linear(dt, self.dt_proj.weight)  # the op adds the bias, before its softplus
        a = -self.A_log.exp()
        y = selective_scan(u, delta, a, b, c, self.D, z, self.dt_proj.bias, sequences.cu_seqlens)
        return self.out_proj(sequences.select(y))
