"""Modules made of ops, on packed rows."""

from recgrela.nn.attention import CausalAttention, LinRecAttention, heads_of
from recgrela.nn.basic import MLP, Activation, Dropout, DropPath, FeedForward, takes_kernel, through
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
    "RotaryTable",
    "Sequences",
    "heads_of",
    "takes_kernel",
    "through",
]
