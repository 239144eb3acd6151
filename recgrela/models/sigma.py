"""SIGMA, selective gated Mamba for sequential recommendation (arXiv 2408.11451)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.models.base import SequenceModel
from recgrela.models.mamba4rec import MAMBA_NAMES, mamba_settings
from recgrela.models.official import AuthorSettings, OfficialWeights, State
from recgrela.nn import Dropout, Linear, Mamba, PostNormBlock, Sequences, run_blocks, select_rows
from recgrela.settings.fields import setting
from recgrela.settings.model import MambaConfig, Padding


@dataclass(frozen=True)
class SIGMAConfig(MambaConfig):
    """Settings of SIGMA."""

    name: Literal["SIGMA"] = setting("SIGMA", "Name of the model.")
    flip: int = setting(
        45, "Number of rows reversed at the start of a sequence; the authors use 45 at any length.", min=1
    )
    padding: Padding = setting(
        "attend",
        "Padding up to max_len: attend, as published, reverses it with the items of a short sequence and "
        "passes it to the convolution; mask excludes it.",
    )
    single_layer_residual: bool = setting(
        False, "Keep the residual in a model of one layer; the authors drop it."
    )


class GRU(nn.GRU):
    """A GRU of one layer that can be differentiated in eval mode too.

    cuDNN saves what the backward needs only in training mode, so this module is always in training mode. One
    layer has no dropout, so its outputs are the same in both modes.
    """

    def train(self, mode: bool = True) -> GRU:
        return super().train(True)


class GatedMamba(nn.Module):
    """A weighted sum of a Mamba block on the rows, the same block on partly reversed rows, and a GRU.

    The reversed branch is not reversed back. The three weights are used without a softmax, as in the authors'
    code, which computes one and does not use it.
    """

    def __init__(self, config: SIGMAConfig) -> None:
        super().__init__()
        c, d = config, config.hidden_size
        self.flip = c.flip
        self.mix = nn.Parameter(torch.tensor([0.1, 0.1, 0.8]))  # GRU, reversed rows, rows
        self.dense1, self.dense2 = Linear(d, d), Linear(d, d)
        self.sigmoid_gate, self.silu_gate = Linear(d, d), Linear(d, d)
        self.mamba = Mamba(d, c.state_size, c.conv_width, c.expand)
        self.conv = nn.Conv1d(d, d, kernel_size=3, padding=1)
        self.gru = GRU(d, d, bias=False, batch_first=True)
        self.dropout = Dropout(c.dropout)
        self.out_proj = Linear(d, d)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x: [T, D] -> [T, D], or the wanted rows [B, D]."""
        flipped = select_rows(x, sequences.reversed_rows(self.flip))
        y, y_flipped = self.mamba(x, sequences), self.mamba(flipped, sequences)
        local = self.conv(sequences.to_dense(x).transpose(1, 2)).transpose(1, 2)
        recurrent = sequences.select(sequences.to_packed(self.gru(local)[0]))
        x, flipped = sequences.select(x), sequences.select(flipped)
        first = x + self.dense1(x)
        first = self.silu_gate(F.silu(first)) + self.sigmoid_gate(torch.sigmoid(first))
        first = self.dropout(first, sequences)
        second = flipped + self.dense2(flipped)
        # The second branch's sigmoid gate is computed from the first branch's gate.
        second = self.silu_gate(F.silu(second)) + self.sigmoid_gate(torch.sigmoid(first))
        second = self.dropout(second, sequences)
        y, y_flipped = y * first + y, y_flipped * second + y_flipped
        return self.out_proj(self.mix[2] * y + self.mix[1] * y_flipped + self.mix[0] * recurrent)


def official_config(state: State, settings: AuthorSettings) -> SIGMAConfig:
    return SIGMAConfig(**mamba_settings(state, settings, "mamba_layers.0.gmamba.mamba"))


class SIGMA(SequenceModel):
    """States near the start depend on later rows, so only the item after the last one can be a target."""

    config: SIGMAConfig
    trains_on = ("last",)
    capture_obstacle = "its GRU runs in cuDNN, whose backward pass has not been tested in a CUDA graph"
    official = OfficialWeights(
        official_config,
        [
            (r"\.gmamba\.", ".mixer."),
            (r"\.combining_weights$", ".mix"),
            (r"\.projection\.", ".out_proj."),
            (r"\.selective_gate_sig\.1\.", ".sigmoid_gate."),
            (r"\.selective_gate_si\.1\.", ".silu_gate."),
            *MAMBA_NAMES,
        ],
    )

    def __init__(self, config: SIGMAConfig, n_items: int, max_len: int) -> None:
        super().__init__(config, n_items, max_len)
        c = config
        self.layers = nn.ModuleList(
            PostNormBlock(
                "mixer",
                GatedMamba(c),
                c.hidden_size,
                c.dropout,
                residual=c.num_layers > 1 or c.single_layer_residual,
            )
            for _ in range(c.num_layers)
        )
        self.reset_parameters()

    def encode(self, x: Tensor, sequences: Sequences) -> Tensor:
        return run_blocks(self.layers, x, sequences)

    def slots(self, lengths: np.ndarray) -> int:
        return len(lengths) * (self.max_len if self.attends_to_padding else int(lengths.max()))
