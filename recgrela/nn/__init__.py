"""Modules on packed rows, built from ops. Modules that mix positions are called as `module(x, sequences)`."""

from recgrela.nn.attention import CausalAttention, LinRecAttention
from recgrela.nn.basic import MLP, Activation, AddNorm, Dropout, FeedForward, Linear, linear_pair
from recgrela.nn.blocks import PostNormBlock, run_blocks
from recgrela.nn.mamba import Mamba
from recgrela.nn.rela import GatedRotaryLinearAttention, RotaryTable
from recgrela.nn.sequences import SeedStream, Sequences, select_rows
from recgrela.nn.state import ModelState, Stateful
from recgrela.nn.streams import conv_history, stream_conv, stream_scan

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
    "ModelState",
    "PostNormBlock",
    "RotaryTable",
    "SeedStream",
    "Sequences",
    "Stateful",
    "conv_history",
    "linear_pair",
    "run_blocks",
    "select_rows",
    "stream_conv",
    "stream_scan",
]
