"""Dropout and feed-forward networks."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.nn.sequences import Sequences
from recgrela.ops import dropout, mlp
from recgrela.ops.mlp import ACTIVATIONS

Activation = Literal["silu", "relu", "gelu"]


def takes_kernel(x: Tensor) -> bool:
    """Whether the CPU's `mlp` takes x: not in half precision, not under autocast."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
    )


class Dropout(nn.Module):
    """Zeroes each element with probability `rate` and scales the others up to keep the mean."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape -> the same."""
        if not self.training:
            return x
        return dropout(x, self.rate) if x.device.type == "cpu" else F.dropout(x, self.rate)


class DropPath(nn.Module):
    """Stochastic depth: drops a whole sequence's branch with probability `rate`, scales the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, sequences: Sequences | None) -> Tensor:
        """x: [T, D], rows of the sequences, or (None) [B, D], a row of each -> the same shape."""
        if not self.training or self.rate == 0:
            return x
        batch = len(x) if sequences is None else sequences.batch
        keep = x.new_empty(batch).bernoulli_(1 - self.rate) / (1 - self.rate)
        return x * (keep if sequences is None else keep[sequences.index])[:, None]


class MLP(nn.Module):
    """D -> inner size -> D with dropout behind the activation and behind the output.

    On the CPU, in float32 and float64, it is one op.
    """

    def __init__(self, hidden_size: int, inner_size: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, inner_size)
        self.fc2 = nn.Linear(inner_size, hidden_size)
        self.activation = activation
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: [T, D] -> [T, D]."""
        if takes_kernel(x):
            weights = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
            rate = self.dropout.rate if self.training else 0.0
            return mlp(x, *weights, activation=self.activation, dropout=rate)
        return self.dropout(self.fc2(self.dropout(ACTIVATIONS[self.activation](self.fc1(x)))))


class FeedForward(nn.Module):
    """LayerNorm(MLP(x) + x), the second half of a post-norm block.

    Args:
        hidden_size: D.
        inner_size: width of the hidden layer.
        activation: of the hidden layer.
        dropout: rate behind the output.
        inner_dropout: drop behind the activation too.
        eps: of the LayerNorm.
    """

    def __init__(
        self,
        hidden_size: int,
        inner_size: int,
        activation: Activation,
        dropout: float,
        inner_dropout: bool = True,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.mlp = MLP(hidden_size, inner_size, activation, dropout if inner_dropout else 0.0)
        self.dropout = Dropout(0.0 if inner_dropout else dropout)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """x: [T, D] -> [T, D]."""
        return self.norm(self.dropout(self.mlp(x)) + x)


def through(blocks: nn.ModuleList, x: Tensor, *how: object, rows: Tensor | None) -> Tensor:
    """Rows [T, D] through blocks, each called with `how` too, the last one also with the `rows` wanted."""
    *before, last = blocks
    for block in before:
        x = block(x, *how)
    return last(x, *how, rows)
