"""SIGMA, selective gated Mamba for sequential recommendation (arXiv 2408.11451)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.models.base import SequenceModel
from recgrela.models.mamba4rec import mamba_sizes
from recgrela.models.official import count_of
from recgrela.nn import Dropout, FeedForward, Mamba, Sequences, through
from recgrela.settings.fields import setting
from recgrela.settings.model import MambaConfig, Padding


@dataclass(frozen=True)
class SIGMAConfig(MambaConfig):
    """Settings of SIGMA."""

    name: Literal["SIGMA"] = setting("SIGMA", "Name of the model.")
    flip: int = setting(
        45, "Number of rows reversed at the start of a sequence; the authors take 45 at any length.", min=1
    )
    padding: Padding = setting(
        "attend",
        "Padding up to max_len: attend reverses it with the items of a short sequence and passes it to the "
        "convolution after the last item, as published; mask excludes it.",
    )
    single_layer_residual: bool = setting(
        False, "Keep the residual in a model of one layer; the authors drop it."
    )


class GatedMamba(nn.Module):
    """One Mamba block on the rows and on the partly flipped rows, and a GRU behind a convolution, mixed.

    The flipped branch is not turned back. The three weights are used as they are: the authors compute a
    softmax of them and leave it unused.
    """

    def __init__(self, config: SIGMAConfig) -> None:
        super().__init__()
        c, d = config, config.hidden_size
        self.mix = nn.Parameter(torch.tensor([0.1, 0.1, 0.8]))  # GRU, flipped, straight
        self.dense1, self.dense2 = nn.Linear(d, d), nn.Linear(d, d)
        self.sigmoid_gate, self.silu_gate = nn.Linear(d, d), nn.Linear(d, d)
        self.mamba = Mamba(d, c.state_size, c.conv_width, c.expand)
        self.conv = nn.Conv1d(d, d, kernel_size=3, padding=1)
        self.gru = nn.GRU(d, d, bias=False, batch_first=True)
        self.dropout = Dropout(c.dropout)
        self.out_proj = nn.Linear(d, d)

    def forward(self, x: Tensor, sequences: Sequences, order: Tensor, rows: Tensor | None = None) -> Tensor:
        """x: [T, D] -> [T, D]; or with `rows` [B], -> [B, D]. order: [T], the rows in flipped order."""
        flipped = x[order]
        straight, turned = self.mamba(x, sequences, rows), self.mamba(flipped, sequences, rows)
        local = self.conv(sequences.to_dense(x).transpose(1, 2)).transpose(1, 2)
        recurrent = sequences.to_rows(self.gru(local)[0])
        if rows is not None:
            x, flipped, recurrent = x[rows], flipped[rows], recurrent[rows]
        first = x + self.dense1(x)
        first = self.dropout(self.silu_gate(F.silu(first)) + self.sigmoid_gate(torch.sigmoid(first)))
        second = flipped + self.dense2(flipped)
        # The sigmoid gate of the second branch looks at the first branch's gate.
        second = self.dropout(self.silu_gate(F.silu(second)) + self.sigmoid_gate(torch.sigmoid(first)))
        straight, turned = straight * first + straight, turned * second + turned
        return self.out_proj(self.mix[2] * straight + self.mix[1] * turned + self.mix[0] * recurrent)


class SIGMALayer(nn.Module):
    """LN(Drop(mixed) + x), then a feed-forward network."""

    def __init__(self, config: SIGMAConfig) -> None:
        super().__init__()
        self.mixer = GatedMamba(config)
        self.dropout = Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.ffn = FeedForward(config.hidden_size, 4 * config.hidden_size, "gelu", config.dropout)
        self.residual = config.num_layers > 1 or config.single_layer_residual

    def forward(self, x: Tensor, sequences: Sequences, order: Tensor, rows: Tensor | None = None) -> Tensor:
        """x: [T, D] -> [T, D]; or with `rows` [B], -> [B, D]. order: [T], the rows in flipped order."""
        y = self.dropout(self.mixer(x, sequences, order, rows))
        if self.residual:
            y = y + (x if rows is None else x[rows])
        return self.ffn(self.norm(y))


class SIGMA(SequenceModel):
    """Rows near the start see rows behind them, so only what follows the last item can be learned."""

    config: SIGMAConfig
    trains_on = ("last",)
    dense = True

    def __init__(self, config: SIGMAConfig, n_items: int, max_len: int) -> None:
        super().__init__(config, n_items, max_len)
        self.layers = nn.ModuleList(SIGMALayer(config) for _ in range(config.num_layers))
        self.padded_len = max_len if config.padding == "attend" else None
        self.bounded = config.padding == "attend"
        self.reset_parameters()

    def encode(self, x: Tensor, sequences: Sequences, rows: Tensor | None) -> Tensor:
        order = sequences.reversed_rows(self.config.flip)
        return through(self.layers, x, sequences, order, rows=rows)

    OFFICIAL_NAMES: ClassVar = [
        (r"^LayerNorm\.", "norm."),
        (r"^mamba_layers\.", "layers."),
        (r"\.gmamba\.", ".mixer."),
        (r"\.combining_weights$", ".mix"),
        (r"\.projection\.", ".out_proj."),
        (r"\.selective_gate_sig\.1\.", ".sigmoid_gate."),
        (r"\.selective_gate_si\.1\.", ".silu_gate."),
        (r"\.conv1d\.", ".conv."),
        (r"\.ffn\.w_([12])\.", r".ffn.mlp.fc\1."),
        (r"\.LayerNorm\.", ".norm."),
    ]

    @classmethod
    def official_config(cls, state: dict[str, Tensor], settings: dict[str, Any]) -> SIGMAConfig:
        return SIGMAConfig(
            num_layers=count_of(state, r"^mamba_layers\.(\d+)\."),
            **mamba_sizes(state, "mamba_layers.0.gmamba.mamba"),
            dropout=float(settings.get("dropout_prob", SIGMAConfig.dropout)),
        )
