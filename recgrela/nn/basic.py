"""Linear layers, dropout, normalized sums and feed-forward networks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from recgrela.nn.sequences import Sequences
from recgrela.ops import add_norm, dropout, linear, mlp, mlp_block
from recgrela.ops.checks import HALF
from recgrela.ops.mlp_block import has_kernel

Activation = Literal["silu", "relu", "gelu"]


class Linear(nn.Linear):
    """`torch.nn.Linear` on rows, computed by `recgrela.ops.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [T, I] -> [T, O]."""
        return linear(x, self.weight, self.bias)

    def with_input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [T, I] -> [T, O], and x to compute the rest from, as `linear` returns it."""
        return linear(x, self.weight, self.bias, return_x=True)


def linear_pair(first: nn.Linear, second: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """Two layers of the same input x [T, I], which is read once -> their outputs."""
    return linear(x, first.weight, first.bias, second.weight, second.bias)


class Dropout(nn.Module):
    """Zeroes each element with probability `rate` and scales the others to keep the mean."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x: any shape -> the same shape."""
        if not self.training or self.rate == 0:
            return x
        return dropout(x, self.rate, sequences.seeds(1))


class AddNorm(nn.LayerNorm):
    """A residual sum and its LayerNorm: x + DropPath(Dropout(branch)), as one op.

    Args:
        hidden_size: D.
        eps: added to the variance.
        post_norm: whether the residual stream continues with the norm, or with the sum before it.
        dropout: rate at which elements of the branch are dropped.
        drop_path: rate at which a sequence's whole branch is dropped (stochastic depth).
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        eps: float = 1e-12,
        post_norm: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(hidden_size, eps=eps)
        self.post_norm, self.dropout, self.drop_path = post_norm, dropout, drop_path

    def forward(  # type: ignore[override]
        self, x: Tensor, branch: Tensor | None, sequences: Sequences
    ) -> tuple[Tensor, Tensor]:
        """Adds and normalizes all rows [T, D], or the wanted rows [B, D].

        Args:
            x: the residual stream.
            branch: the output of the branch, shaped like x; None: zeros.
            sequences: the sequences of the rows.

        Returns:
            The residual stream, and the normalized rows in the dtype of products.
        """
        rates, seed = (0.0, 0.0), None
        if self.training and branch is not None and (self.dropout or self.drop_path):
            rates, seed = (self.dropout, self.drop_path), sequences.seeds(2)
        is_half = x.dtype in HALF  # a model whose parameters are in half precision
        residual, normed = add_norm(
            x.float() if is_half else x,
            branch,
            self.weight,
            self.bias,
            eps=self.eps,
            post_norm=self.post_norm,
            dropout=rates[0],
            drop_path=rates[1],
            sequence=sequences.index if rates[1] and sequences.wanted is None else None,
            seed=seed,
        )
        return (residual.to(x.dtype), normed.to(x.dtype)) if is_half else (residual, normed)


class MLP(nn.Module):
    """D -> inner_size -> D, with dropout after the activation and after the output, as one op."""

    def __init__(self, hidden_size: int, inner_size: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, inner_size)
        self.fc2 = nn.Linear(inner_size, hidden_size)
        self.activation, self.dropout = activation, dropout

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x: [T, D] -> [T, D]."""
        rate = self.dropout if self.training else 0.0
        seed = sequences.seeds(2) if rate else None
        return mlp(x, *self.weights, activation=self.activation, dropout=rate, seed=seed)

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight and bias of the first layer and of the second."""
        return self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias

    def block(
        self, norm: AddNorm, x: Tensor, branch: Tensor, sequences: Sequences
    ) -> tuple[Tensor, Tensor | None]:
        """The second half of a pre-norm block: s + MLP(norm(s)), where s = x + DropPath(branch).

        Args:
            norm: the norm before the MLP, with the rate of DropPath.
            x: the residual stream, [T, D] or the wanted rows [B, D].
            branch: the output of the block's first half, shaped like x.
            sequences: the sequences of the rows.

        Returns:
            The residual stream, and the rows that the next block must add to it; None if it has them.
        """
        if norm.dropout or not has_kernel(x, branch, self.fc1.out_features):
            x, rows = norm(x, branch, sequences)
            return x, self(rows, sequences)
        rate, path_rate = (self.dropout, norm.drop_path) if self.training else (0.0, 0.0)
        y = mlp_block(
            x.float() if x.dtype in HALF else x,
            branch,
            norm.weight,
            norm.bias,
            *self.weights,
            eps=norm.eps,
            activation=self.activation,
            dropout=rate,
            drop_path=path_rate,
            sequence=sequences.index if path_rate and sequences.wanted is None else None,
            seed=_block_seed(sequences, rate > 0, path_rate > 0),
        )
        return y.to(x.dtype), None


def _block_seed(sequences: Sequences, dropout: bool, drop_path: bool) -> Tensor | None:
    """Seeds for `mlp_block`: those that the norm and the MLP would draw one after the other."""
    if not (dropout or drop_path):
        return None
    drawn = sequences.seeds(2 * (dropout + drop_path))
    if drawn is None or (dropout and drop_path):
        return drawn if drawn is None else drawn[1:]
    return torch.cat((drawn[:1], drawn)) if dropout else drawn[1:].expand(3)


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
        self.norm = AddNorm(hidden_size, eps=eps, post_norm=True, dropout=0.0 if inner_dropout else dropout)

    def forward(self, x: Tensor, sequences: Sequences, rows: Tensor | None = None) -> Tensor:
        """x: [T, D] -> [T, D]. `rows` is x in the dtype of products, if the caller has it already."""
        return self.norm(x, self.mlp(x if rows is None else rows, sequences), sequences)[0]
