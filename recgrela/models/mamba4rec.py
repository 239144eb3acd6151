"""Mamba4Rec, selective state spaces for sequential recommendation (arXiv 2403.03900)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from recgrela.models.base import SequenceModel
from recgrela.models.official import count_of
from recgrela.nn import Dropout, FeedForward, Mamba, Sequences, through
from recgrela.settings.fields import setting
from recgrela.settings.model import MambaConfig


@dataclass(frozen=True)
class Mamba4RecConfig(MambaConfig):
    """Settings of Mamba4Rec."""

    name: Literal["Mamba4Rec"] = setting("Mamba4Rec", "Name of the model.")
    single_layer_residual: bool = setting(
        False, "Keep the residual around Mamba in a model of one layer; the authors drop it."
    )


class MambaLayer(nn.Module):
    """LN(Drop(Mamba(x)) + x), then a feed-forward network."""

    def __init__(self, config: Mamba4RecConfig) -> None:
        super().__init__()
        c = config
        self.mamba = Mamba(c.hidden_size, c.state_size, c.conv_width, c.expand)
        self.dropout = Dropout(c.dropout)
        self.norm = nn.LayerNorm(c.hidden_size, eps=1e-12)
        self.ffn = FeedForward(c.hidden_size, 4 * c.hidden_size, "gelu", c.dropout)
        self.residual = c.num_layers > 1 or c.single_layer_residual

    def forward(self, x: Tensor, sequences: Sequences, rows: Tensor | None = None) -> Tensor:
        """x: [T, D] -> [T, D]; or with `rows` [B], one of each sequence, -> [B, D]."""
        y = self.dropout(self.mamba(x, sequences, rows))
        if self.residual:
            y = y + (x if rows is None else x[rows])
        return self.ffn(self.norm(y))


class Mamba4Rec(SequenceModel):
    """Causal, so packed rows without padding give what the authors' padded ones do."""

    config: Mamba4RecConfig
    trains_on = ("last", "all")

    def __init__(self, config: Mamba4RecConfig, n_items: int, max_len: int) -> None:
        super().__init__(config, n_items, max_len)
        self.layers = nn.ModuleList(MambaLayer(config) for _ in range(config.num_layers))
        # All Linear weights, so Mamba's own start of its step sizes is overwritten, as in the authors' code.
        self.reset_parameters()

    def encode(self, x: Tensor, sequences: Sequences, rows: Tensor | None) -> Tensor:
        return through(self.layers, x, sequences, rows=rows)

    OFFICIAL_NAMES: ClassVar = [
        (r"^LayerNorm\.", "norm."),
        (r"^mamba_layers\.", "layers."),
        (r"\.conv1d\.", ".conv."),
        (r"\.ffn\.w_([12])\.", r".ffn.mlp.fc\1."),
        (r"\.LayerNorm\.", ".norm."),
    ]

    @classmethod
    def official_config(cls, state: dict[str, Tensor], settings: dict[str, Any]) -> Mamba4RecConfig:
        return Mamba4RecConfig(
            num_layers=count_of(state, r"^mamba_layers\.(\d+)\."),
            **mamba_sizes(state, "mamba_layers.0.mamba"),
            dropout=float(settings.get("dropout_prob", Mamba4RecConfig.dropout)),
        )


def mamba_sizes(state: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    """Sizes of a Mamba block by the authors' parameters. KeyError: they are missing."""
    inner, states = state[f"{prefix}.A_log"].shape
    hidden = state[f"{prefix}.in_proj.weight"].shape[1]
    return {
        "hidden_size": hidden,
        "state_size": states,
        "conv_width": state[f"{prefix}.conv1d.weight"].shape[-1],
        "expand": inner // hidden,
    }
