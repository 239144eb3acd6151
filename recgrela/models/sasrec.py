"""SASRec, self-attentive sequential recommendation (arXiv 1808.09781), in the form that RecBole gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from recgrela.models.transformer import TransformerModel
from recgrela.nn import CausalAttention
from recgrela.settings.fields import setting
from recgrela.settings.model import TransformerConfig


@dataclass(frozen=True)
class SASRecConfig(TransformerConfig):
    """Settings of SASRec."""

    name: Literal["SASRec"] = setting("SASRec", "Name of the model.")
    attention_dropout: float = setting(0.2, "Dropout rate of the attention weights.", min=0, below=1)


class SASRec(TransformerModel):
    """Causal softmax attention to every item before, at a cost that grows with the square of the length."""

    config: SASRecConfig
    trains_on = ("last", "all")

    def make_attention(self) -> nn.Module:
        c = self.config
        return CausalAttention(c.hidden_size, c.num_heads, c.dropout, c.attention_dropout)

    @classmethod
    def official_config(cls, state: dict[str, Tensor], settings: dict[str, Any]) -> SASRecConfig:
        sizes = cls.official_sizes(state, settings)
        attention_dropout = settings.get("attn_dropout_prob", SASRecConfig.attention_dropout)
        return SASRecConfig(**sizes, attention_dropout=float(attention_dropout))
