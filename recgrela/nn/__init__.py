"""Modules on packed rows, built from ops. Modules that mix positions are called as `module(x, sequences)`."""

from recgrela.nn.attention import CausalAttention, LinRecAttention
from recgrela.nn.basic import MLP, Activation, Dropout, DropPath, FeedForward
from recgrela.nn.blocks import PostNormBlock, run_blocks
from recgrela.nn.mamba import Mamba
from recgrela.nn.rela import GatedRotaryLinearAttention, RotaryTable
from recgrela.nn.sequences import Sequences

__all__ = [
    "MLP",
    "Activation",
    "CausalAttention",
    "DropPath",
    "Dropout",
    "FeedForward",
    "GatedRotaryLinearAttention",
    "LinRecAttention",
    "Mamba",
    "PostNormBlock",
    "RotaryTable",
    "Sequences",
    "run_blocks",
]
