"""What the models in the form of RecBole's Transformer encoders share."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.models.base import SequenceModel
from recgrela.models.official import count_of, joined, renamed
from recgrela.nn import FeedForward, Sequences, through


class TransformerBlock(nn.Module):
    """Post-norm attention, then a post-norm feed-forward network with dropout behind its output alone."""

    def __init__(self, config: Any, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.ffn = FeedForward(
            config.hidden_size, config.inner_size, "gelu", config.dropout, inner_dropout=False
        )

    def forward(self, x: Tensor, sequences: Sequences, rows: Tensor | None = None) -> Tensor:
        """x: [T, D] -> [T, D]; or with `rows` [B], the last item of each sequence, -> [B, D]."""
        return self.ffn(self.attention(x, sequences, rows))


class TransformerModel(SequenceModel):
    """Learned positions and blocks; a subclass makes the blocks' attention."""

    dense = True
    bounded = True  # by the positions

    def __init__(self, config: Any, n_items: int, max_len: int) -> None:
        super().__init__(config, n_items, max_len)
        self.position_embedding = nn.Embedding(max_len, config.hidden_size)
        self.blocks = nn.ModuleList(
            TransformerBlock(config, self.make_attention()) for _ in range(config.num_layers)
        )
        self.reset_parameters()

    def make_attention(self) -> nn.Module:
        """The attention of one block."""
        raise NotImplementedError

    def embed(self, items: Tensor, sequences: Sequences) -> Tensor:
        x = F.embedding(items, self.item_embedding.weight, padding_idx=0)
        # RecBole's encoders drop behind the norm, the others before it.
        return self.dropout(self.norm(x + self.position_embedding(sequences.positions())))

    def encode(self, x: Tensor, sequences: Sequences, rows: Tensor | None) -> Tensor:
        return through(self.blocks, x, sequences, rows=rows)

    OFFICIAL_NAMES: ClassVar = [
        (r"^LayerNorm\.", "norm."),
        (r"^trm_encoder\.layer\.", "blocks."),
        (r"\.multi_head_attention\.", ".attention."),
        (r"\.dense\.", ".out_proj."),
        (r"\.feed_forward\.dense_([12])\.", r".ffn.mlp.fc\1."),
        (r"\.feed_forward\.LayerNorm\.", ".ffn.norm."),
        (r"\.LayerNorm\.", ".norm."),
    ]

    @classmethod
    def own_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return renamed(joined(state, ("query", "key", "value"), "qkv_proj"), cls.OFFICIAL_NAMES)

    @staticmethod
    def official_sizes(state: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Any]:
        """The settings that all configurations of this form have."""
        dropout = settings.get("hidden_dropout_prob")
        return {
            "hidden_size": state["item_embedding.weight"].shape[1],
            "num_heads": int(settings["n_heads"]),
            "num_layers": count_of(state, r"^trm_encoder\.layer\.(\d+)\."),
            "inner_size": state["trm_encoder.layer.0.feed_forward.dense_1.weight"].shape[0],
            **({} if dropout is None else {"dropout": float(dropout)}),
        }
