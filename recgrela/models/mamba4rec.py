"""Mamba4Rec, selective state spaces for sequential recommendation (arXiv 2403.03900)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from recgrela.models.base import SequenceModel
from recgrela.models.official import AuthorSettings, OfficialWeights, State, count_modules, given
from recgrela.nn import Mamba, PostNormBlock, Sequences, run_blocks
from recgrela.settings.fields import setting
from recgrela.settings.model import MambaConfig


@dataclass(frozen=True)
class Mamba4RecConfig(MambaConfig):
    """Settings of Mamba4Rec."""

    name: Literal["Mamba4Rec"] = setting("Mamba4Rec", "Name of the model.")
    single_layer_residual: bool = setting(
        False, "Keep the residual around Mamba in a model of one layer; the authors drop it."
    )


MAMBA_NAMES = [
    (r"^mamba_layers\.", "layers."),
    (r"\.conv1d\.", ".conv."),
    (r"\.ffn\.w_([12])\.", r".ffn.mlp.fc\1."),
    (r"(^|\.)LayerNorm\.", r"\1norm."),
]


def mamba_settings(state: State, settings: AuthorSettings, prefix: str) -> dict[str, Any]:
    """The settings that all configurations with Mamba blocks have; `prefix` names one block."""
    inner, state_size = state[f"{prefix}.A_log"].shape
    hidden = state[f"{prefix}.in_proj.weight"].shape[1]
    return {
        "hidden_size": hidden,
        "num_layers": count_modules(state, r"^mamba_layers\.(\d+)\."),
        "state_size": state_size,
        "conv_width": state[f"{prefix}.conv1d.weight"].shape[-1],
        "expand": inner // hidden,
        **given(settings, dropout="dropout_prob"),
    }


def official_config(state: State, settings: AuthorSettings) -> Mamba4RecConfig:
    return Mamba4RecConfig(**mamba_settings(state, settings, "mamba_layers.0.mamba"))


class Mamba4Rec(SequenceModel):
    """Causal: packed rows without padding give the same results as the authors' padded ones."""

    config: Mamba4RecConfig
    trains_on = ("last", "all")
    carries_state = True
    official = OfficialWeights(official_config, MAMBA_NAMES)

    def __init__(self, config: Mamba4RecConfig, n_items: int, max_len: int) -> None:
        super().__init__(config, n_items, max_len)
        c = config
        self.layers = nn.ModuleList(
            PostNormBlock(
                "mamba",
                Mamba(c.hidden_size, c.state_size, c.conv_width, c.expand),
                c.hidden_size,
                c.dropout,
                residual=c.num_layers > 1 or c.single_layer_residual,
            )
            for _ in range(c.num_layers)
        )
        # Overwrites Mamba's own initial step sizes, as the authors' code does.
        self.reset_parameters()

    def encode(self, x: Tensor, sequences: Sequences) -> Tensor:
        return run_blocks(self.layers, x, sequences)
