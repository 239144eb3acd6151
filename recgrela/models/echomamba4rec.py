"""EchoMamba4Rec, bidirectional Mamba behind a learned filter in the frequency domain (arXiv 2406.02638)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from recgrela.models.base import SequenceModel
from recgrela.models.mamba4rec import mamba_sizes
from recgrela.models.official import count_of, renamed
from recgrela.nn import Dropout, Mamba, Sequences, through
from recgrela.settings.fields import setting
from recgrela.settings.model import MambaConfig, Padding


@dataclass(frozen=True)
class EchoMamba4RecConfig(MambaConfig):
    """Settings of EchoMamba4Rec; each layer has num_layers pairs of Mamba blocks."""

    name: Literal["EchoMamba4Rec"] = setting("EchoMamba4Rec", "Name of the model.")
    padding: Padding = setting(
        "attend",
        "Padding up to max_len: attend passes it to the filter and, before the items, to the backward "
        "direction, as published; mask filters zeros instead and begins that direction at the last item.",
    )


class FrequencyFilter(nn.Module):
    """LN(Drop(filtered x) + x): a learned complex factor for each channel and frequency of max_len slots."""

    def __init__(self, hidden_size: int, max_len: int, dropout: float) -> None:
        super().__init__()
        self.max_len = max_len
        self.weight = nn.Parameter(torch.randn(max_len // 2 + 1, hidden_size, 2) * 0.02)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x: [T, D] -> [T, D]."""
        dense = sequences.to_dense(x, self.max_len).to(self.weight.dtype)
        waves = torch.fft.rfft(dense, dim=1, norm="ortho") * torch.view_as_complex(self.weight)
        filtered = torch.fft.irfft(waves, n=self.max_len, dim=1, norm="ortho")
        return self.norm(self.dropout(sequences.to_rows(filtered)) + x)


class GatedLinearUnit(nn.Module):
    """LN(Drop(fc2(value sigmoid(gate)) + x)), value and gate from one projection."""

    def __init__(self, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, 2 * hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        """x: [T, D] -> [T, D]."""
        value, gate = self.fc1(x).chunk(2, dim=1)
        return self.norm(self.dropout(self.fc2(value * torch.sigmoid(gate)) + x))


class MambaPair(nn.Module):
    """The sum of a Mamba block forward and of one backward, each LN(Drop(Mamba(x)) + x)."""

    def __init__(self, config: EchoMamba4RecConfig) -> None:
        super().__init__()
        c = config
        sizes = (c.hidden_size, c.state_size, c.conv_width, c.expand)
        self.forward_mamba, self.backward_mamba = Mamba(*sizes), Mamba(*sizes)
        # The authors leave PyTorch's eps here.
        self.forward_norm, self.backward_norm = nn.LayerNorm(c.hidden_size), nn.LayerNorm(c.hidden_size)
        self.dropout = Dropout(c.dropout)

    def forward(self, x: Tensor, sequences: Sequences, order: Tensor, rows: Tensor | None = None) -> Tensor:
        """x: [T, D] -> [T, D]; or with `rows` [B], -> [B, D]. order: [T], the rows backward."""
        ahead = self.forward_mamba(x, sequences, rows)
        if rows is None:
            back = self.backward_mamba(x[order], sequences)[order]
        else:
            back = self.backward_mamba(x[order], sequences, order[rows])
            x = x[rows]
        return self.forward_norm(self.dropout(ahead) + x) + self.backward_norm(self.dropout(back) + x)


class EchoLayer(nn.Module):
    """A filter, pairs of Mamba blocks, a gated linear unit."""

    def __init__(self, config: EchoMamba4RecConfig, max_len: int) -> None:
        super().__init__()
        self.filter = FrequencyFilter(config.hidden_size, max_len, config.dropout)
        self.pairs = nn.ModuleList(MambaPair(config) for _ in range(config.num_layers))
        self.glu = GatedLinearUnit(config.hidden_size, config.dropout)

    def forward(self, x: Tensor, sequences: Sequences, order: Tensor, rows: Tensor | None = None) -> Tensor:
        """x: [T, D] -> [T, D]; or with `rows` [B], -> [B, D]. order: [T], the rows backward."""
        x = self.filter(x, sequences)
        *pairs, last = self.pairs
        for pair in pairs:
            x = pair(x, sequences, order)
        return self.glu(last(x, sequences, order, rows))


class EchoMamba4Rec(SequenceModel):
    """Every row sees the whole sequence, so only what follows the last item can be learned."""

    config: EchoMamba4RecConfig
    trains_on = ("last",)
    bounded = True  # by the filter

    def __init__(self, config: EchoMamba4RecConfig, n_items: int, max_len: int) -> None:
        super().__init__(config, n_items, max_len)
        self.layers = nn.ModuleList(EchoLayer(config, max_len) for _ in range(config.num_layers))
        self.padded_len = max_len if config.padding == "attend" else None
        self.reset_parameters()

    @property
    def counted_len(self) -> int:
        return self.max_len  # the filter sees so many slots of each sequence

    def encode(self, x: Tensor, sequences: Sequences, rows: Tensor | None) -> Tensor:
        order = sequences.reversed_rows()
        return through(self.layers, x, sequences, order, rows=rows)

    OFFICIAL_NAMES: ClassVar = [
        (r"^LayerNorm\.", "norm."),
        (r"^mamba_layers\.", "layers."),
        (r"\.filter_layer\.complex_weight$", ".filter.weight"),
        (r"\.filter_layer\.", ".filter."),
        (r"\.norms_(forward|backward)\.(\d+)\.", r".pairs.\2.\1_norm."),
        (r"\.mamba_(forward|backward)s\.(\d+)\.", r".pairs.\2.\1_mamba."),
        (r"\.conv1d\.", ".conv."),
        (r"\.LayerNorm\.", ".norm."),
    ]
    OFFICIAL_UNUSED: ClassVar = r"\.multi_query_transformer_block\."  # built by the authors, never called

    @classmethod
    def own_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        ours = renamed(state, cls.OFFICIAL_NAMES)
        return {name: x[0] if name.endswith("filter.weight") else x for name, x in ours.items()}

    @classmethod
    def official_config(cls, state: dict[str, Tensor], settings: dict[str, Any]) -> EchoMamba4RecConfig:
        return EchoMamba4RecConfig(
            num_layers=count_of(state, r"^mamba_layers\.(\d+)\."),
            **mamba_sizes(state, "mamba_layers.0.mamba_forwards.0"),
            dropout=float(settings.get("dropout_prob", EchoMamba4RecConfig.dropout)),
        )
