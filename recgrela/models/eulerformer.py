"""EulerFormer, sequential recommendation with complex vector attention (arXiv 2403.17729)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from recgrela.models.official import AuthorSettings, State, given
from recgrela.models.transformer import (
    TransformerBlock,
    TransformerModel,
    encoder_layout,
    encoder_settings,
    encoder_weights,
)
from recgrela.nn import CausalAttention, Sequences
from recgrela.ops import dropout, embedding, rotate
from recgrela.settings.fields import setting
from recgrela.settings.model import Padding, TransformerConfig
from recgrela.system.errors import ConfigError

# The authors' constants of the contrastive loss: a term added to its sum, and the dropout rate of its angles.
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
    """Modulus and angle of pairs of channels, [T, D] -> [T, D / 2] each. A pair of zeros gets no gradient.

    Dropout produces pairs of zeros, for which the gradients of the root and of the angle would be NaN.
    """
    real, imaginary = x.unflatten(1, (-1, 2)).unbind(2)
    square = real.square() + imaginary.square()
    zero = square == 0
    modulus = square.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)
    return modulus, torch.atan2(imaginary.masked_fill(zero, 0), real.masked_fill(zero, 1))


class EulerAttention(CausalAttention):
    """Causal attention whose queries and keys are rotated in polar form.

    A pair of channels keeps its modulus. Its angle t becomes delta t + the angle of its position (+ a bias
    for queries).
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
        # Saved in checkpoints, because the authors save these angles as a frozen parameter.
        self.register_buffer("angles", angles.to(torch.get_default_dtype()))

    def polar_rotate(self, x: Tensor, positions: Tensor, bias: Tensor | None) -> Tensor:
        """x [T, D] at positions [T] -> [T, D]."""
        modulus, angle = polar(x.to(self.delta.dtype))
        angle = angle * self.delta + self.angles[positions]
        angle = angle if bias is None else angle + bias
        return torch.stack([modulus * angle.cos(), modulus * angle.sin()], dim=2).flatten(1).to(x.dtype)

    def project(self, x: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, x = super().project(x, sequences)
        positions = sequences.positions()
        q = self.polar_rotate(q, sequences.select(positions), self.query_bias)
        return q, self.polar_rotate(k, positions, None), v, x

    def forward_with_losses(self, x: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """The result of `forward`, and the contrastive losses [T] of the query and key of each row."""
        q, k, v, x = self.project(x, sequences.with_wanted(None))
        losses = self.contrastive_losses(q, sequences) + self.contrastive_losses(k, sequences)
        mixed = self.mix(sequences.select(q), k, v, sequences)
        return self.finish(mixed, x, sequences), losses

    def contrastive_losses(self, x: Tensor, sequences: Sequences) -> Tensor:
        """-log(e_ii / (sum_j e_ij + eps)) of rows x [T, D] -> [T], with e_ij = exp(similarity of i and j).

        The similarity is the scaled sum of the cosines of the angles' differences over the temperature. In
        training, dropout is applied to the angles of rows j.
        """
        _, angle = polar(x.to(self.delta.dtype))
        other = dropout(angle, CONTRASTIVE_DROPOUT, sequences.seeds(1)) if self.training else angle
        scale = self.contrastive_scale / self.temperature
        a = torch.cat([angle.cos() * scale, angle.sin() * scale], dim=1)
        b = torch.cat([other.cos(), other.sin()], dim=1)
        similarity = sequences.to_dense(a) @ sequences.to_dense(b).transpose(1, 2)  # [B, L, L]
        if sequences.lengths is None:
            mask = sequences.item_mask(similarity.shape[2])[:, None]
            similarity = similarity.masked_fill(~mask, -math.inf)
        total = torch.logaddexp(similarity.logsumexp(2), similarity.new_full((), math.log(CONTRASTIVE_EPS)))
        return sequences.to_packed(total) - (a * b).sum(1)


def official_layout(state: State) -> State:
    # The authors store each angle twice and use the first.
    return {name: x[..., 0] if name.endswith(".angles") else x for name, x in encoder_layout(state).items()}


def official_config(state: State, settings: AuthorSettings) -> EulerFormerConfig:
    return EulerFormerConfig(
        **encoder_settings(state, settings),
        **given(
            settings,
            attention_dropout="attn_dropout_prob",
            contrastive_weight="lamb",
            temperature="tep",
        ),
        query_bias=any(name.endswith("euler.b") for name in state),
    )


class EulerFormer(TransformerModel):
    """Causal attention in polar form. The contrastive loss is a part of the loss, not of the scores."""

    config: EulerFormerConfig
    trains_on = ("last", "all")
    official = encoder_weights(
        official_config,
        [
            (r"\.multi_head_attention\.w$", ".attention.contrastive_scale"),
            (r"\.euler\.b$", ".query_bias"),
            (r"\.euler\.delta$", ".delta"),
            (r"\.euler\.alpha$", ".angles"),
        ],
        official_layout,
    )

    def __init__(self, config: EulerFormerConfig, n_items: int, max_len: int) -> None:
        super().__init__(config, n_items, max_len)
        self.rotary_embedding = nn.Embedding(max_len, config.hidden_size // 2)
        nn.init.zeros_(self.rotary_embedding.weight)

    def make_attention(self) -> nn.Module:
        return EulerAttention(self.config, self.max_len)

    def embed(self, items: Tensor, sequences: Sequences) -> Tensor:
        positions = sequences.positions()
        x = self.look_up(items) + embedding(positions, self.position_embedding.weight)
        angle = embedding(positions, self.rotary_embedding.weight)
        x = rotate(x, torch.stack([angle.cos(), angle.sin()], dim=2))
        return self.dropout(self.norm(x, None, sequences)[0], sequences)

    def encode_for_loss(self, x: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor | None]:
        if self.config.contrastive_weight == 0:
            return self.encode(x, sequences), None
        blocks = [cast(TransformerBlock, block) for block in self.blocks]
        whole, total = sequences.with_wanted(None), x.new_zeros(len(x))
        for block in blocks:
            attention = cast(EulerAttention, block.attention)
            x, losses = attention.forward_with_losses(x, sequences if block is blocks[-1] else whole)
            x, total = block.ffn(x, sequences), total + losses
        index, lengths, batch = sequences.index, sequences.lengths, sequences.batch - sequences.fillers
        if sequences.wanted is not None:  # sequences weigh the same, however a batch is cut
            total = total / sequences.cu_seqlens.diff()[index]
            mean = torch.where(index < batch, total, 0).sum() / batch
        elif lengths is None:  # every row is a target
            mean = total.mean()
        else:  # every row of the sequences that have items
            counted = (lengths > 0)[index]
            mean = torch.where(counted, total, 0).sum() / counted.sum()
        return x, self.config.contrastive_weight * mean
