"""SASRec, self-attentive sequential recommendation (arXiv 1808.09781), as implemented in RecBole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from recgrela.models.official import AuthorSettings, State, given
from recgrela.models.transformer import TransformerModel, encoder_settings, encoder_weights
from recgrela.nn import CausalAttention
from recgrela.settings.fields import setting
from recgrela.settings.model import TransformerConfig


@dataclass(frozen=True)
class SASRecConfig(TransformerConfig):
    """Settings of SASRec."""

    name: Literal["SASRec"] = setting("SASRec", "Name of the model.")
    attention_dropout: float = setting(0.2, "Dropout rate of the attention weights.", min=0, below=1)


def official_config(state: State, settings: AuthorSettings) -> SASRecConfig:
    rates = given(settings, attention_dropout="attn_dropout_prob")
    return SASRecConfig(**encoder_settings(state, settings), **rates)


class SASRec(TransformerModel):
    """Causal softmax attention, whose cost grows with the square of the length."""

    config: SASRecConfig
    trains_on = ("last", "all")
    official = encoder_weights(official_config)

    def make_attention(self) -> nn.Module:
        c = self.config
        return CausalAttention(c.hidden_size, c.num_heads, c.dropout, c.attention_dropout)
