"""Stacks of blocks, and a block that several models share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recgrela.nn.basic import Activation, AddNorm, FeedForward
from recgrela.nn.sequences import Sequences


def run_blocks(blocks: nn.ModuleList, x: Tensor, sequences: Sequences) -> Tensor:
    """Passes rows x [T, D] through all blocks -> [T, D], or the wanted rows [B, D].

    Only the last block is limited to the wanted rows, because it needs all rows of the block before it.
    """
    *inner, last = blocks
    whole = sequences.with_wanted(None)
    for block in inner:
        x = block(x, whole)
    return last(x, sequences)


class PostNormBlock(nn.Module):
    """LN(Dropout(mixer(x)) + x), then a feed-forward network 4 D wide.

    Args:
        name: the attribute that holds the mixer, and so a part of its parameters' names in checkpoints.
        mixer: the module that mixes positions, called as `mixer(x, sequences)`.
        hidden_size: D.
        dropout: the rate after the mixer and in the feed-forward network.
        activation: the activation of the feed-forward network.
        residual: whether to add x.
    """

    def __init__(
        self,
        name: str,
        mixer: nn.Module,
        hidden_size: int,
        dropout: float,
        activation: Activation = "gelu",
        residual: bool = True,
    ) -> None:
        super().__init__()
        self._mixer_name = name
        self.add_module(name, mixer)
        self.norm = AddNorm(hidden_size, post_norm=True, dropout=dropout)
        self.ffn = FeedForward(hidden_size, 4 * hidden_size, activation, dropout)
        self.residual = residual

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x: [T, D] -> [T, D], or the wanted rows [B, D]."""
        branch = getattr(self, self._mixer_name)(x, sequences)
        x = sequences.select(x)
        x, rows = self.norm(x if self.residual else torch.zeros_like(x), branch, sequences)
        return self.ffn(x, sequences, rows)
