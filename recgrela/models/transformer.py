"""Base class of the models that use RecBole's Transformer encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from recgrela.models.base import SequenceModel
from recgrela.models.official import AuthorSettings, OfficialWeights, State, count_modules, given, joined
from recgrela.nn import FeedForward, Sequences, run_blocks
from recgrela.ops import embedding
from recgrela.settings.model import TransformerConfig


class TransformerBlock(nn.Module):
    """Post-norm attention, then a post-norm feed-forward network with dropout after its output only."""

    def __init__(self, config: TransformerConfig, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.ffn = FeedForward(
            config.hidden_size, config.inner_size, "gelu", config.dropout, inner_dropout=False
        )

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x: [T, D] -> [T, D], or the wanted rows [B, D]."""
        return self.ffn(self.attention(x, sequences), sequences)


class TransformerModel(SequenceModel):
    """A model with learned positions and Transformer blocks. A subclass implements `make_attention`."""

    def __init__(self, config: TransformerConfig, n_items: int, max_len: int) -> None:
        super().__init__(config, n_items, max_len)
        self.position_embedding = nn.Embedding(max_len, config.hidden_size)
        self.blocks = nn.ModuleList(
            TransformerBlock(config, self.make_attention()) for _ in range(config.num_layers)
        )
        self.max_positions = max_len  # the position embeddings
        self.reset_parameters()

    def make_attention(self) -> nn.Module:
        """The attention of one block."""
        raise NotImplementedError

    def embed(self, items: Tensor, sequences: Sequences) -> Tensor:
        x = self.look_up(items) + embedding(sequences.positions(), self.position_embedding.weight)
        # RecBole's encoders apply dropout after the norm, the other models before it.
        return self.dropout(self.norm(x, None, sequences)[0], sequences)

    def encode(self, x: Tensor, sequences: Sequences) -> Tensor:
        return run_blocks(self.blocks, x, sequences)

    def slots(self, lengths: np.ndarray) -> int:
        return len(lengths) * (self.max_len if self.attends_to_padding else int(lengths.max()))


# ---- the authors' weights


def encoder_layout(state: State) -> State:
    """Joins the three input projections of each attention."""
    return joined(state, ("query", "key", "value"), "qkv_proj")


def encoder_weights(
    config: Callable[[State, AuthorSettings], Any],
    names: Sequence[tuple[str, str]] = (),
    layout: Callable[[State], State] = encoder_layout,
) -> OfficialWeights:
    """How to convert the weights of a model with this encoder; `names` apply before the encoder's own."""
    encoder_names = [
        (r"^LayerNorm\.", "norm."),
        (r"^trm_encoder\.layer\.", "blocks."),
        (r"\.multi_head_attention\.", ".attention."),
        (r"\.dense\.", ".out_proj."),
        (r"\.feed_forward\.dense_([12])\.", r".ffn.mlp.fc\1."),
        (r"\.feed_forward\.LayerNorm\.", ".ffn.norm."),
        (r"\.LayerNorm\.", ".norm."),
    ]
    return OfficialWeights(config, [*names, *encoder_names], layout)


def encoder_settings(state: State, settings: AuthorSettings) -> dict[str, Any]:
    """The settings that all configurations with this encoder have."""
    return {
        "hidden_size": state["item_embedding.weight"].shape[1],
        "num_heads": int(settings["n_heads"]),
        "num_layers": count_modules(state, r"^trm_encoder\.layer\.(\d+)\."),
        "inner_size": state["trm_encoder.layer.0.feed_forward.dense_1.weight"].shape[0],
        **given(settings, dropout="hidden_dropout_prob"),
    }
