"""RecGRELA, gated rotary-enhanced linear attention for sequential recommendation (arXiv 2506.13315)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.models.base import SequenceModel
from recgrela.models.official import count_of
from recgrela.nn import (
    MLP,
    Activation,
    DropPath,
    GatedRotaryLinearAttention,
    RotaryTable,
    Sequences,
    through,
)
from recgrela.settings.checks import check_choices, check_counts, check_heads, check_rates
from recgrela.system.errors import ConfigError


@dataclass(frozen=True)
class RecGRELAConfig:
    """Settings of RecGRELA; the defaults are the published ones, in the causal form.

    Args:
        name: the model's name.
        hidden_size: embedding width D.
        num_heads: attention heads H.
        num_layers: blocks.
        mode: causal (prefix sums; trains on every position) or bidirectional (the published model; trains on
            the last position).
        padding: bidirectional only: attend (padding slots up to max_len take part as if they were items, as
            published) or mask (real items only).
        dropout: rate at the embedding and in the MLP.
        drop_path: rate at which a whole sequence skips a block's attention branch.
        position: rotary (published), or in its place learned or sinusoidal embeddings, or none.
        rotary_base: base of the rotary angles.
        conv_width: taps of the local shortcut's causal convolution; 0 leaves the shortcut out.
        gate: multiply by the activated gate.
        gate_activation: activation of the gate.
        mlp_activation: activation of the MLP.
        mlp_ratio: width of the MLP over D.
        input_projection: project the block's input before attention.
        value_projection: a value matrix of its own; without it the projected input is the values.
        single_block_residual: keep the residuals when there is one block (the authors drop both there).
        eps: added to the attention's denominator.
    """

    name: Literal["RecGRELA"] = "RecGRELA"
    hidden_size: int = 64
    num_heads: int = 4
    num_layers: int = 4
    mode: Literal["causal", "bidirectional"] = "causal"
    padding: Literal["mask", "attend"] = "mask"
    dropout: float = 0.1
    drop_path: float = 0.1
    position: Literal["rotary", "learned", "sinusoidal", "none"] = "rotary"
    rotary_base: float = 10000.0
    conv_width: int = 4
    gate: bool = True
    gate_activation: Activation = "silu"
    mlp_activation: Activation = "gelu"
    mlp_ratio: int = 4
    input_projection: bool = True
    value_projection: bool = False
    single_block_residual: bool = False
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "hidden_size", "num_heads", "num_layers", "mlp_ratio")
        check_rates(self, "dropout", "drop_path")
        check_heads(self, even=True)
        if self.conv_width < 0:
            raise ConfigError(f"model.conv_width must be at least 0, got {self.conv_width}")
        if not 0 <= self.eps < math.inf:
            raise ConfigError(f"model.eps must not be negative, got {self.eps}")
        if not 1 < self.rotary_base < math.inf:
            raise ConfigError(f"model.rotary_base must be above 1, got {self.rotary_base}")
        if self.mode == "causal" and self.padding == "attend":
            raise ConfigError(
                "model.padding=attend goes with model.mode=bidirectional only: what follows a "
                "causal sequence's end cannot change it"
            )


class Block(nn.Module):
    """x + DropPath(attention(LN1 x)), then x + MLP(LN2 x)."""

    def __init__(self, config: RecGRELAConfig, rotary: RotaryTable | None) -> None:
        super().__init__()
        c, d = config, config.hidden_size
        self.norm1 = nn.LayerNorm(d, eps=1e-12)
        self.attention = GatedRotaryLinearAttention(
            d,
            c.num_heads,
            causal=c.mode == "causal",
            conv_width=c.conv_width,
            rotary=rotary,
            gate=c.gate,
            gate_activation=c.gate_activation,
            input_projection=c.input_projection,
            value_projection=c.value_projection,
            eps=c.eps,
        )
        self.drop_path = DropPath(c.drop_path)
        self.norm2 = nn.LayerNorm(d, eps=1e-12)
        self.mlp = MLP(d, c.mlp_ratio * d, c.mlp_activation, c.dropout)
        self.residual = c.num_layers > 1 or c.single_block_residual

    def forward(self, x: Tensor, sequences: Sequences, rows: Tensor | None = None) -> Tensor:
        """x: [T, D] -> [T, D]; or with `rows` [B], one of each sequence (its last, if causal), -> [B, D]."""
        a = self.attention(self.norm1(x), sequences, rows)
        a = self.drop_path(a, sequences if rows is None else None)
        x = x if rows is None else x[rows]
        x = x + a if self.residual else a
        m = self.mlp(self.norm2(x))
        return x + m if self.residual else m


class RecGRELA(SequenceModel):
    """The model of the paper; see `RecGRELAConfig` for its forms and `SequenceModel` for how it is called."""

    config: RecGRELAConfig

    def __init__(self, config: RecGRELAConfig, n_items: int, max_len: int) -> None:
        super().__init__(config, n_items, max_len)
        d = config.hidden_size
        self.position_embedding = nn.Embedding(max_len, d) if config.position == "learned" else None
        rotary = RotaryTable(d, config.rotary_base, max_len) if config.position == "rotary" else None
        self.blocks = nn.ModuleList(Block(config, rotary) for _ in range(config.num_layers))
        self.trains_on = ("last", "all") if config.mode == "causal" else ("last",)
        self.bounded = config.padding == "attend" or config.position == "learned"
        self.padded_len = max_len if config.padding == "attend" else None
        self.reset_parameters()

    def embed(self, items: Tensor, sequences: Sequences) -> Tensor:
        x = F.embedding(items, self.item_embedding.weight, padding_idx=0)
        if self.position_embedding is not None:
            x = x + self.position_embedding(sequences.positions())
        elif self.config.position == "sinusoidal":
            x = x + sinusoids(sequences.max_seqlen, x)[sequences.positions()]
        return self.norm(self.dropout(x))

    def encode(self, x: Tensor, sequences: Sequences, rows: Tensor | None) -> Tensor:
        return through(self.blocks, x, sequences, rows=rows)

    OFFICIAL_NAMES: ClassVar = [
        (r"^LayerNorm\.", "norm."),
        (r"^GRELA_block\.", "blocks."),
        (r"\.attn\.qk\.", ".attention.qk_proj."),
        (r"\.attn\.conv1d\.", ".attention.conv."),
        (r"\.act_proj\.", ".attention.gate_proj."),
        (r"\.in_proj\.", ".attention.in_proj."),
        (r"\.out_proj\.", ".attention.out_proj."),
        (r"\.LayerNorm([12])\.", r".norm\1."),
    ]
    OFFICIAL_UNUSED: ClassVar = r"rope\.rotations$"  # a table that ours computes

    @classmethod
    def official_config(cls, state: dict[str, Tensor], settings: dict[str, Any]) -> RecGRELAConfig:
        return RecGRELAConfig(
            hidden_size=state["item_embedding.weight"].shape[1],
            num_heads=int(settings["num_heads"]),
            num_layers=count_of(state, r"GRELA_block\.(\d+)\."),
            mode="bidirectional",
            padding="attend",
            conv_width=state["GRELA_block.0.attn.conv1d.weight"].shape[-1],
            dropout=float(settings.get("dropout_prob", RecGRELAConfig.dropout)),
            drop_path=float(settings.get("drop_path", RecGRELAConfig.drop_path)),
        )


def sinusoids(length: int, like: Tensor) -> Tensor:
    """Sinusoidal position embeddings [length, D] (Vaswani et al., 2017, section 3.5), D even."""
    d = like.shape[-1]
    rates = torch.exp(
        torch.arange(0, d, 2, device=like.device, dtype=torch.float64) * (-math.log(10000.0) / d)
    )
    angles = torch.arange(length, device=like.device, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(like.dtype)
