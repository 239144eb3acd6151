"""SASRec, self-attentive sequential recommendation (arXiv 1808.09781), in the form that RecBole gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from recgrela.models.transformer import TransformerModel, check_transformer
from recgrela.nn import CausalAttention


@dataclass(frozen=True)
class SASRecConfig:
    """Settings of SASRec.

    Args:
        name: the model's name.
        hidden_size: embedding width D.
        num_heads: attention heads.
        num_layers: blocks.
        inner_size: width of the feed-forward network.
        dropout: rate at the embedding and behind every output.
        attention_dropout: rate on the attention's weights.
    """

    name: Literal["SASRec"] = "SASRec"
    hidden_size: int = 64
    num_heads: int = 2
    num_layers: int = 2
    inner_size: int = 256
    dropout: float = 0.2
    attention_dropout: float = 0.2

    def __post_init__(self) -> None:
        check_transformer(self)


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
