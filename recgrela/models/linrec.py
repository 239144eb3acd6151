"""LinRec, linear attention for sequential recommendation (arXiv 2411.01537), on SASRec's encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from recgrela.models.transformer import TransformerModel
from recgrela.nn import LinRecAttention
from recgrela.settings.fields import setting
from recgrela.settings.model import Padding, TransformerConfig


@dataclass(frozen=True)
class LinRecConfig(TransformerConfig):
    """Settings of LinRec; the defaults are those of the authors' configuration."""

    name: Literal["LinRec"] = setting("LinRec", "Name of the model.")
    # The paper's text says 64, the authors' configuration 128.
    hidden_size: int = setting(128, "Embedding width D.", min=1)
    num_heads: int = setting(8, "Number of attention heads; divides hidden_size.", min=1)
    padding: Padding = setting(
        "attend", "Padding up to max_len: attend treats it as items, as published; mask excludes it."
    )


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
