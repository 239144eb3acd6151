"""Settings that several models share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from recgrela.ops.selective_scan import MAX_STATES
from recgrela.settings.fields import Settings, setting
from recgrela.system.errors import ConfigError

Padding = Literal["mask", "attend"]


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Settings of a model; `name` is its key in `recgrela.models.MODELS`."""

    section: ClassVar[str] = "model"

    name: str = setting("", "Name of the model.")
    hidden_size: int = setting(64, "Embedding width D.", min=1)
    num_layers: int = setting(2, "Number of layers.", min=1)
    dropout: float = setting(0.2, "Dropout rate, after the embedding and in the layers.", min=0, below=1)


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """Settings of a model of attention and feed-forward blocks."""

    num_heads: int = setting(2, "Number of attention heads; divides hidden_size.", min=1)
    inner_size: int = setting(256, "Width of the feed-forward network.", min=1)

    def check_together(self) -> None:
        check_heads(self.hidden_size, self.num_heads)


@dataclass(frozen=True)
class MambaConfig(ModelConfig):
    """Settings of a model of Mamba blocks."""

    state_size: int = setting(32, "Number of states per channel.", min=1, max=MAX_STATES)
    conv_width: int = setting(4, "Kernel size of Mamba's convolution.", min=1)
    expand: int = setting(2, "Number of Mamba's channels, as a multiple of hidden_size.", min=1)


def check_heads(hidden_size: int, num_heads: int, even: bool = False) -> None:
    """Raises ConfigError unless the heads divide the embedding; `even` also requires an even head width."""
    if hidden_size % num_heads or (even and hidden_size // num_heads % 2):
        parts = " into heads of even width" if even else ""
        raise ConfigError(
            f"model.num_heads: {num_heads} does not divide model.hidden_size {hidden_size}{parts}"
        )
