"""EulerFormer, sequential recommendation with complex vector attention (arXiv 2403.17729)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.models.transformer import TransformerBlock, TransformerModel, check_transformer
from recgrela.nn import CausalAttention, Sequences
from recgrela.ops import rotate
from recgrela.system.errors import ConfigError

# Added to the contrastive loss's sum, and the rate at which its angles are dropped; fixed by the authors.
CONTRASTIVE_EPS, CONTRASTIVE_DROPOUT = 1e-5, 0.5


@dataclass(frozen=True)
class EulerFormerConfig:
    """Settings of EulerFormer.

    Args:
        name: the model's name.
        hidden_size: embedding width D, even.
        num_heads: attention heads.
        num_layers: blocks.
        inner_size: width of the feed-forward network.
        dropout: rate at the embedding and behind every output.
        attention_dropout: rate on the attention's weights.
        query_bias: a learned angle that all queries turn by.
        initial_delta: where the factor of the semantic angles starts.
        contrastive_weight: of the contrastive loss between the rows of a sequence.
        temperature: of the contrastive loss.
        padding: attend (padding slots up to max_len take part in the contrastive loss, as published) or mask.
    """

    name: Literal["EulerFormer"] = "EulerFormer"
    hidden_size: int = 64
    num_heads: int = 2
    num_layers: int = 2
    inner_size: int = 256
    dropout: float = 0.2
    attention_dropout: float = 0.2
    query_bias: bool = True
    initial_delta: float = 1.0
    contrastive_weight: float = 1e-5
    temperature: float = 1.0
    padding: Literal["attend", "mask"] = "attend"

    def __post_init__(self) -> None:
        check_transformer(self)
        if self.hidden_size % 2:
            raise ConfigError(f"model.hidden_size must be even, got {self.hidden_size}")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"model.temperature must be above 0, got {self.temperature}")
        if not 0 <= self.contrastive_weight < math.inf:
            raise ConfigError(f"model.contrastive_weight must not be negative, got {self.contrastive_weight}")


def polar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Modulus and angle of pairs of channels, [T, D] -> [T, D / 2] each; of a pair of zeros without gradient.

    Dropout makes such pairs, and the gradients of the root and of the angle there are not numbers.
    """
    real, imaginary = x.unflatten(1, (-1, 2)).unbind(2)
    square = real.square() + imaginary.square()
    zero = square == 0
    modulus = square.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)
    return modulus, torch.atan2(imaginary.masked_fill(zero, 0), real.masked_fill(zero, 1))


class EulerAttention(CausalAttention):
    """Causal attention of queries and keys whose pairs of channels are turned in polar form.

    A pair of modulus l and angle t becomes one of l and delta t + position angle (+ a bias for queries).
    """

    def __init__(self, config: EulerFormerConfig, max_len: int) -> None:
        c, pairs = config, config.hidden_size // 2
        super().__init__(c.hidden_size, c.num_heads, c.dropout, c.attention_dropout)
        self.temperature = c.temperature
        self.delta = nn.Parameter(torch.full((1,), c.initial_delta))
        self.query_bias = nn.Parameter(torch.zeros(1)) if c.query_bias else None
        self.contrastive_scale = nn.Parameter(torch.ones(pairs))
        rates = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angles = torch.arange(max_len, dtype=torch.float64)[:, None] * rates
        self.angles: Tensor
        self.register_buffer("angles", angles.to(torch.get_default_dtype()))  # frozen, as the authors save it

    def turn(self, x: Tensor, positions: Tensor, bias: Tensor | None) -> Tensor:
        """x [T, D] at positions [T] -> [T, D]."""
        modulus, angle = polar(x.to(self.delta.dtype))
        angle = angle * self.delta + self.angles[positions]
        angle = angle if bias is None else angle + bias
        return torch.stack([modulus * angle.cos(), modulus * angle.sin()], dim=2).flatten(1).to(x.dtype)

    def forward(self, x: Tensor, sequences: Sequences, rows: Tensor | None = None) -> Tensor:
        positions = sequences.positions()
        q, k, v = self.project(x, rows)
        q = self.turn(q, positions if rows is None else positions[rows], self.query_bias)
        return self.attend(q, self.turn(k, positions, None), v, x, sequences, rows)

    def with_contrastive_losses(
        self, x: Tensor, sequences: Sequences, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same, and the contrastive losses of each row's query and key, [T]."""
        positions = sequences.positions()
        q, k, v = self.project(x, None)
        q, k = self.turn(q, positions, self.query_bias), self.turn(k, positions, None)
        losses = self.contrastive_losses(q, sequences) + self.contrastive_losses(k, sequences)
        return self.attend(q if rows is None else q[rows], k, v, x, sequences, rows), losses

    def contrastive_losses(self, x: Tensor, sequences: Sequences) -> Tensor:
        """-log(e_ii / (sum_j e_ij + eps)) of rows [T, D] -> [T], e the exponential of two rows' likeness.

        Likeness is the sum of the scaled cosines of the angles' differences, by temperature; in training one
        side's angles are dropped at random.
        """
        _, angle = polar(x.to(self.delta.dtype))
        other = F.dropout(angle, CONTRASTIVE_DROPOUT, self.training)
        scale = self.contrastive_scale / self.temperature
        a = torch.cat([angle.cos() * scale, angle.sin() * scale], dim=1)
        b = torch.cat([other.cos(), other.sin()], dim=1)
        likeness = sequences.to_dense(a) @ sequences.to_dense(b).transpose(1, 2)  # [B, L, L]
        if sequences.lengths is None:
            likeness = likeness.masked_fill(~sequences.items(likeness.shape[2])[:, None], -math.inf)
        total = torch.logaddexp(likeness.logsumexp(2), likeness.new_full((), math.log(CONTRASTIVE_EPS)))
        return sequences.to_rows(total) - (a * b).sum(1)


class EulerFormer(TransformerModel):
    """Causal; the contrastive loss is added in training and evaluation of the loss, not to scores."""

    config: EulerFormerConfig
    trains_on = ("last", "all")

    def __init__(self, config: EulerFormerConfig, n_items: int, max_len: int) -> None:
        super().__init__(config, n_items, max_len)
        self.rotary_embedding = nn.Embedding(max_len, config.hidden_size // 2)
        nn.init.zeros_(self.rotary_embedding.weight)
        self.padded_len = max_len if config.padding == "attend" else None

    def make_attention(self) -> nn.Module:
        return EulerAttention(self.config, self.max_len)

    def embed(self, items: Tensor, sequences: Sequences) -> Tensor:
        positions = sequences.positions()
        x = F.embedding(items, self.item_embedding.weight, padding_idx=0) + self.position_embedding(positions)
        angle = self.rotary_embedding(positions)
        x = rotate(x, torch.stack([angle.cos(), angle.sin()], dim=2))
        return self.dropout(self.norm(x))

    def encode_for_loss(
        self, x: Tensor, sequences: Sequences, rows: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.config.contrastive_weight == 0:
            return self.encode(x, sequences, rows), None
        blocks = [cast(TransformerBlock, block) for block in self.blocks]
        total = x.new_zeros(len(x))
        for block in blocks:
            attention = cast(EulerAttention, block.attention)
            x, losses = attention.with_contrastive_losses(x, sequences, rows if block is blocks[-1] else None)
            x, total = block.ffn(x), total + losses
        if rows is None:  # a target is a row
            mean = total.mean()
        else:  # a target is a sequence: each counts the same, however a batch is cut
            mean = (total / sequences.cu_seqlens.diff()[sequences.index]).sum() / sequences.batch
        return x, self.config.contrastive_weight * mean

    OFFICIAL_NAMES: ClassVar = [
        (r"\.multi_head_attention\.w$", ".attention.contrastive_scale"),
        (r"\.euler\.b$", ".query_bias"),
        (r"\.euler\.delta$", ".delta"),
        (r"\.euler\.alpha$", ".angles"),
        *TransformerModel.OFFICIAL_NAMES,
    ]

    @classmethod
    def own_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        ours = super().own_state(state)
        # Theirs holds each angle twice and uses the first.
        return {name: x[..., 0] if name.endswith(".angles") else x for name, x in ours.items()}

    @classmethod
    def official_config(cls, state: dict[str, Tensor], settings: dict[str, Any]) -> EulerFormerConfig:
        default = EulerFormerConfig()
        return EulerFormerConfig(
            **cls.official_sizes(state, settings),
            attention_dropout=float(settings.get("attn_dropout_prob", default.attention_dropout)),
            query_bias=any(name.endswith("euler.b") for name in state),
            contrastive_weight=float(settings.get("lamb", default.contrastive_weight)),
            temperature=float(settings.get("tep", default.temperature)),
        )
