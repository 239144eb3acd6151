"""Dropout and feed-forward networks."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from recgrela.nn.sequences import Sequences
from recgrela.ops import dropout, mlp

Activation = Literal["silu", "relu", "gelu"]


class Dropout(nn.Module):
    """Zeroes each element with probability `rate` and scales the others to keep the mean."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape -> the same shape."""
        return dropout(x, self.rate) if self.training else x


class DropPath(nn.Module):
    """Stochastic depth: drops a sequence's branch with probability `rate`, and scales the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x: the branch of all rows [T, D], or of the wanted rows [B, D] -> the same shape."""
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(sequences.batch).bernoulli_(1 - self.rate) / (1 - self.rate)
        return x * (keep[sequences.index] if sequences.wanted is None else keep)[:, None]


class MLP(nn.Module):
    """D -> inner_size -> D, with dropout after the activation and after the output, as one op."""

    def __init__(self, hidden_size: int, inner_size: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, inner_size)
        self.fc2 = nn.Linear(inner_size, hidden_size)
        self.activation = activation
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: [T, D] -> [T, D]."""
        weights = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        rate = self.dropout.rate if self.training else 0.0
        return mlp(x, *weights, activation=self.activation, dropout=rate)


class FeedForward(nn.Module):
    """LayerNorm(MLP(x) + x), the second half of a post-norm block.

    Args:
        hidden_size: D.
        inner_size: the width of the hidden layer.
        activation: the activation of the hidden layer.
        dropout: the rate after the output.
        inner_dropout: whether to apply dropout after the activation too.
        eps: added to the variance by the LayerNorm.
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
