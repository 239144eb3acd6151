"""EulerFormer, sequential recommendation with complex vector attention (arXiv 2403.17729)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.models.transformer import TransformerBlock, TransformerModel
from recgrela.nn import CausalAttention, Sequences
from recgrela.ops import rotate
from recgrela.settings.fields import setting
from recgrela.settings.model import Padding, TransformerConfig
from recgrela.system.errors import ConfigError

# Added to the contrastive loss's sum, and the rate at which its angles are dropped; fixed by the authors.
CONTRASTIVE_EPS, CONTRASTIVE_DROPOUT = 1e-5, 0.5


@dataclass(frozen=True)
class EulerFormerConfig(TransformerConfig):
    """Settings of EulerFormer; hidden_size is even."""

    name: Literal["EulerFormer"] = setting("EulerFormer", "Name of the model.")
    attention_dropout: float = setting(0.2, "Dropout rate of the attention weights.", min=0, below=1)
    query_bias: bool = setting(True, "Rotate all queries by a learned angle.")
    initial_delta: float = setting(1.0, "Initial value of the factor of the semantic angles.")
    contrastive_weight: float = setting(
        1e-5, "Weight of the contrastive loss between the rows of a sequence.", min=0
    )
    temperature: float = setting(1.0, "Temperature of the contrastive loss.", above=0)
    padding: Padding = setting(
        "attend",
        "Padding up to max_len: attend includes it in the contrastive loss, as published; mask excludes it.",
    )

    def check_together(self) -> None:
        super().check_together()
        if self.hidden_size % 2:
            raise ConfigError(f"model.hidden_size: {self.hidden_size} is not even")


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
