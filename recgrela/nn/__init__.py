"""Modules on packed rows, built from ops. Modules that mix positions are called as `module(x, sequences)`."""

from recgrela.nn.attention import CausalAttention, LinRecAttention
from recgrela.nn.basic import MLP, Activation, AddNorm, Dropout, FeedForward, Linear, linear_pair
from recgrela.nn.blocks import PostNormBlock, run_blocks
from recgrela.nn.mamba import Mamba
from recgrela.nn.rela import GatedRotaryLinearAttention, RotaryTable
from recgrela.nn.sequences import SeedStream, Sequences, select_rows

__all__ = [
    "MLP",
    "Activation",
    "AddNorm",
    "CausalAttention",
    "Dropout",
    "FeedForward",
    "GatedRotaryLinearAttention",
    "LinRecAttention",
    "Linear",
    "Mamba",
    "PostNormBlock",
    "RotaryTable",
    "SeedStream",
    "Sequences",
    "linear_pair",
    "run_blocks",
    "select_rows",
]
