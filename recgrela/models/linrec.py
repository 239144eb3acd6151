"""LinRec, linear attention for sequential recommendation (arXiv 2411.01537), on SASRec's encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from recgrela.models.transformer import TransformerModel, check_transformer
from recgrela.nn import LinRecAttention


@dataclass(frozen=True)
class LinRecConfig:
    """Settings of LinRec; the defaults are those of the authors' configuration.

    Args:
        name: the model's name.
        hidden_size: embedding width D.
        num_heads: attention heads.
        num_layers: blocks.
        inner_size: width of the feed-forward network.
        dropout: rate at the embedding and behind every output.
        padding: attend (padding slots up to max_len take part as if they were items, as published) or mask.
    """

    name: Literal["LinRec"] = "LinRec"
    hidden_size: int = 128  # the paper's text says 64, the authors' configuration 128
    num_heads: int = 8
    num_layers: int = 2
    inner_size: int = 256
    dropout: float = 0.2
    padding: Literal["attend", "mask"] = "attend"

    def __post_init__(self) -> None:
        check_transformer(self)


class LinRec(TransformerModel):
    """Every row sees the whole sequence, so only what follows the last item can be learned."""

    config: LinRecConfig
    trains_on = ("last",)

    def __init__(self, config: LinRecConfig, n_items: int, max_len: int) -> None:
        super().__init__(config, n_items, max_len)
        self.padded_len = max_len if config.padding == "attend" else None

    def make_attention(self) -> nn.Module:
        c = self.config
        return LinRecAttention(c.hidden_size, c.num_heads, c.dropout)

    @classmethod
    def official_config(cls, state: dict[str, Tensor], settings: dict[str, Any]) -> LinRecConfig:
        return LinRecConfig(**cls.official_sizes(state, settings))
