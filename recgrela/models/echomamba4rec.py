"""EchoMamba4Rec, bidirectional Mamba after a learned filter in the frequency domain (arXiv 2406.02638)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from recgrela.models.base import SequenceModel
from recgrela.models.mamba4rec import MAMBA_NAMES, mamba_settings
from recgrela.models.official import AuthorSettings, OfficialWeights, State
from recgrela.nn import AddNorm, Dropout, Linear, Mamba, Sequences, run_blocks, select_rows
from recgrela.settings.fields import setting
from recgrela.settings.model import MambaConfig, Padding


@dataclass(frozen=True)
class EchoMamba4RecConfig(MambaConfig):
    """Settings of EchoMamba4Rec; each layer has num_layers pairs of Mamba blocks."""

    name: Literal["EchoMamba4Rec"] = setting("EchoMamba4Rec", "Name of the model.")
    padding: Padding = setting(
        "attend",
        "Padding up to max_len: attend, as published, passes it to the filter and to the backward direction, "
        "which reads it before the items; mask filters zeros and starts that direction at the last item.",
    )


class FrequencyFilter(nn.Module):
    """LN(Dropout(filtered x) + x), with a learned complex factor per channel and frequency."""

    def __init__(self, hidden_size: int, max_len: int, dropout: float) -> None:
        super().__init__()
        self.max_len = max_len
        self.weight = nn.Parameter(torch.randn(max_len // 2 + 1, hidden_size, 2) * 0.02)
        self.norm = AddNorm(hidden_size, post_norm=True, dropout=dropout)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x: [T, D] -> [T, D]."""
        dense = sequences.to_dense(x, self.max_len).to(self.weight.dtype)
        waves = torch.fft.rfft(dense, dim=1, norm="ortho") * torch.view_as_complex(self.weight)
        filtered = torch.fft.irfft(waves, n=self.max_len, dim=1, norm="ortho")
        return self.norm(x, sequences.to_packed(filtered), sequences)[0]


class GatedLinearUnit(nn.Module):
    """LN(Dropout(fc2(value sigmoid(gate)) + x)), where one projection gives value and gate."""

    def __init__(self, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = Linear(hidden_size, 2 * hidden_size)
        self.fc2 = Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)
        self.norm = AddNorm(hidden_size, post_norm=True)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x: [T, D] -> [T, D]."""
        rows, x = self.fc1.with_input(x)
        value, gate = rows.chunk(2, dim=1)
        x = self.dropout(self.fc2(value * torch.sigmoid(gate)) + x, sequences)
        return self.norm(x, None, sequences)[0]


class MambaPair(nn.Module):
    """The sum of a forward and a backward Mamba block, each LN(Dropout(Mamba(x)) + x)."""

    def __init__(self, config: EchoMamba4RecConfig) -> None:
        super().__init__()
        c = config
        sizes = (c.hidden_size, c.state_size, c.conv_width, c.expand)
        self.forward_mamba, self.backward_mamba = Mamba(*sizes), Mamba(*sizes)
        # The authors keep PyTorch's default eps here.
        self.forward_norm, self.backward_norm = (
            AddNorm(c.hidden_size, eps=1e-5, post_norm=True, dropout=c.dropout) for _ in range(2)
        )

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x: [T, D] -> [T, D], or the wanted rows [B, D]."""
        ahead = self.forward_mamba(x, sequences)
        order = sequences.reversed_rows()
        if sequences.wanted is None:
            back = select_rows(self.backward_mamba(select_rows(x, order), sequences), order)
        else:
            back = self.backward_mamba(select_rows(x, order), sequences.with_wanted(order[sequences.wanted]))
            x = sequences.select(x)
        return self.forward_norm(x, ahead, sequences)[0] + self.backward_norm(x, back, sequences)[0]


class EchoLayer(nn.Module):
    """A filter, pairs of Mamba blocks and a gated linear unit."""

    def __init__(self, config: EchoMamba4RecConfig, max_len: int) -> None:
        super().__init__()
        self.filter = FrequencyFilter(config.hidden_size, max_len, config.dropout)
        self.pairs = nn.ModuleList(MambaPair(config) for _ in range(config.num_layers))
        self.glu = GatedLinearUnit(config.hidden_size, config.dropout)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x: [T, D] -> [T, D], or the wanted rows [B, D]."""
        return self.glu(run_blocks(self.pairs, self.filter(x, sequences), sequences), sequences)


def official_layout(state: State) -> State:
    # The authors' filter has a batch dimension of 1.
    return {name: x[0] if name.endswith("filter.weight") else x for name, x in state.items()}


def official_config(state: State, settings: AuthorSettings) -> EchoMamba4RecConfig:
    return EchoMamba4RecConfig(**mamba_settings(state, settings, "mamba_layers.0.mamba_forwards.0"))


class EchoMamba4Rec(SequenceModel):
    """Every state depends on the whole sequence, so only the item after the last one can be a target."""

    config: EchoMamba4RecConfig
    trains_on = ("last",)
    official = OfficialWeights(
        official_config,
        [
            (r"\.filter_layer\.complex_weight$", ".filter.weight"),
            (r"\.filter_layer\.", ".filter."),
            (r"\.norms_(forward|backward)\.(\d+)\.", r".pairs.\2.\1_norm."),
            (r"\.mamba_(forward|backward)s\.(\d+)\.", r".pairs.\2.\1_mamba."),
            *MAMBA_NAMES,
        ],
        official_layout,
        unused=r"\.multi_query_transformer_block\.",  # built but never called
    )

    def __init__(self, config: EchoMamba4RecConfig, n_items: int, max_len: int) -> None:
        super().__init__(config, n_items, max_len)
        self.layers = nn.ModuleList(EchoLayer(config, max_len) for _ in range(config.num_layers))
        self.max_positions = max_len  # the filter's slots
        self.reset_parameters()

    def encode(self, x: Tensor, sequences: Sequences) -> Tensor:
        return run_blocks(self.layers, x, sequences)

    def slots(self, lengths: np.ndarray) -> int:
        return len(lengths) * self.max_len  # the filter transforms all slots of each sequence
