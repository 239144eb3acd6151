"""LinRec, linear attention for sequential recommendation (arXiv 2411.01537), on SASRec's encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from recgrela.models.official import AuthorSettings, State
from recgrela.models.transformer import TransformerModel, encoder_settings, encoder_weights
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


def official_config(state: State, settings: AuthorSettings) -> LinRecConfig:
    return LinRecConfig(**encoder_settings(state, settings))


class LinRec(TransformerModel):
    """Rows attend to the whole sequence, so only the item after the last one can be a target."""

    config: LinRecConfig
    trains_on = ("last",)
    official = encoder_weights(official_config)

    def make_attention(self) -> nn.Module:
        c = self.config
        return LinRecAttention(c.hidden_size, c.num_heads, c.dropout)
