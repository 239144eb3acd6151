"""RecGRELA, gated rotary-enhanced linear attention for sequential recommendation (arXiv 2506.13315)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from recgrela.models.base import SequenceModel
from recgrela.models.official import AuthorSettings, OfficialWeights, State, count_modules, given
from recgrela.nn import (
    MLP,
    Activation,
    AddNorm,
    GatedRotaryLinearAttention,
    RotaryTable,
    Sequences,
)
from recgrela.ops import RelaState, embedding, rela_block_step, rotary_table
from recgrela.settings.fields import setting
from recgrela.settings.model import ModelConfig, Padding, check_heads
from recgrela.system.errors import ConfigError

MAX_TABLE = 1 << 17  # positions of the longest rotary table of a prefill, 33 MB at the published width


@dataclass(frozen=True)
class RecGRELAConfig(ModelConfig):
    """Settings of RecGRELA; the defaults are the published ones, in the causal form."""

    name: Literal["RecGRELA"] = setting("RecGRELA", "Name of the model.")
    num_layers: int = setting(4, "Number of layers.", min=1)
    dropout: float = setting(0.1, "Dropout rate, after the embedding and in the MLP.", min=0, below=1)
    num_heads: int = setting(4, "Number of attention heads; divides hidden_size into even parts.", min=1)
    mode: Literal["causal", "bidirectional"] = setting(
        "causal",
        "causal: attends to earlier items and can train on every position; bidirectional: as published, "
        "trains on the last position only.",
    )
    padding: Padding = setting(
        "mask", "Padding up to max_len: mask excludes it; attend treats it as items (bidirectional only)."
    )
    drop_path: float = setting(
        0.1, "Rate at which a whole sequence skips a block's attention branch.", min=0, below=1
    )
    position: Literal["rotary", "learned", "sinusoidal", "none"] = setting(
        "rotary", "Positions: rotary (published), learned or sinusoidal embeddings, or none."
    )
    rotary_base: float = setting(10000.0, "Base of the rotary angles.", above=1)
    conv_width: int = setting(
        4, "Kernel size of the local shortcut's causal convolution; 0 removes the shortcut.", min=0
    )
    gate: bool = setting(True, "Multiply the attention branch by an activated gate.")
    gate_activation: Activation = setting("silu", "Activation of the gate.")
    mlp_activation: Activation = setting("gelu", "Activation of the MLP.")
    mlp_ratio: int = setting(4, "Width of the MLP, as a multiple of hidden_size.", min=1)
    input_projection: bool = setting(True, "Project the block's input before attention.")
    value_projection: bool = setting(
        False, "Give the values a projection of their own; false takes the projected input."
    )
    single_block_residual: bool = setting(
        False, "Keep the residuals in a model of one block; the authors drop both."
    )
    eps: float = setting(1e-6, "Number added to the attention's denominator.", min=0)

    def check_together(self) -> None:
        check_heads(self.hidden_size, self.num_heads, even=True)
        if self.mode == "causal" and self.padding == "attend":
            raise ConfigError(
                "model.padding: attend requires model.mode bidirectional; padding after the end of a causal "
                "sequence cannot affect it"
            )


class Block(nn.Module):
    """x + DropPath(attention(LN1 x)), then x + MLP(LN2 x)."""

    def __init__(self, config: RecGRELAConfig, rotary: RotaryTable | None) -> None:
        super().__init__()
        c, d = config, config.hidden_size
        self.norm1 = AddNorm(d)
        self.attention = GatedRotaryLinearAttention(
            d,
            c.num_heads,
            causal=c.mode == "causal",
            kernel_size=c.conv_width,
            rotary=rotary,
            gate=c.gate,
            gate_activation=c.gate_activation,
            input_projection=c.input_projection,
            value_projection=c.value_projection,
            eps=c.eps,
        )
        self.norm2 = AddNorm(d, drop_path=c.drop_path)
        self.mlp = MLP(d, c.mlp_ratio * d, c.mlp_activation, c.dropout)
        self.residual = c.num_layers > 1 or c.single_block_residual

    def forward(self, x: Tensor, branch: Tensor | None, sequences: Sequences) -> tuple[Tensor, Tensor | None]:
        """Leaves the last sum to the next block, whose norm adds it, unless a kernel has computed it.

        Args:
            x: the residual stream [T, D].
            branch: the rows to add to it, or None.
            sequences: the sequences of the rows.

        Returns:
            The residual stream and the rows to add to it or None, [T, D] or the wanted rows [B, D].
        """
        if sequences.is_step and branch is None and self.residual and self.attention.is_plain:
            return self.step(x, sequences), None
        x, attended = self.attention(self.norm1, x, branch, sequences)
        if self.residual:
            return self.mlp.block(self.norm2, x, attended, sequences)
        _, rows = self.norm2(torch.zeros_like(x), attended, sequences)
        return self.mlp(rows, sequences), None

    def step(self, x: Tensor, sequences: Sequences) -> Tensor:
        """`forward` of one row of each sequence [B, D] as one op, if the attention is plain."""
        attention, gate = self.attention, self.attention.gate_proj
        state, conv = attention.carried(sequences), attention.conv
        assert state is not None and attention.in_proj is not None
        y = rela_block_step(
            x,
            RelaState(**state),
            self.norm1.weight,
            self.norm1.bias,
            attention.in_proj.weight,
            attention.in_proj.bias,
            None if gate is None else gate.weight,
            None if gate is None else gate.bias,
            attention.qk_proj.weight,
            attention.qk_proj.bias,
            attention.out_proj.weight,
            attention.out_proj.bias,
            self.norm2.weight,
            self.norm2.bias,
            *self.mlp.weights,
            num_heads=attention.num_heads,
            turns=None if attention.rotary is None else attention.rotary.turns(x),
            conv_weight=None if conv is None else conv.weight.squeeze(1),
            conv_bias=None if conv is None else conv.bias,
            eps=attention.eps,
            norm_eps=self.norm1.eps,
            activation=self.mlp.activation,
        )
        return y if y.dtype == x.dtype else y.to(x.dtype)  # under autocast


def official_config(state: State, settings: AuthorSettings) -> RecGRELAConfig:
    return RecGRELAConfig(
        hidden_size=state["item_embedding.weight"].shape[1],
        num_heads=int(settings["num_heads"]),
        num_layers=count_modules(state, r"GRELA_block\.(\d+)\."),
        mode="bidirectional",
        padding="attend",
        conv_width=state["GRELA_block.0.attn.conv1d.weight"].shape[-1],
        **given(settings, dropout="dropout_prob", drop_path="drop_path"),
    )


class RecGRELA(SequenceModel):
    """The model of the paper. See `RecGRELAConfig` for its forms and `SequenceModel` for how to call it."""

    config: RecGRELAConfig
    official = OfficialWeights(
        official_config,
        [
            (r"^LayerNorm\.", "norm."),
            (r"^GRELA_block\.", "blocks."),
            (r"\.attn\.qk\.", ".attention.qk_proj."),
            (r"\.attn\.conv1d\.", ".attention.conv."),
            (r"\.act_proj\.", ".attention.gate_proj."),
            (r"\.in_proj\.", ".attention.in_proj."),
            (r"\.out_proj\.", ".attention.out_proj."),
            (r"\.LayerNorm([12])\.", r".norm\1."),
        ],
        unused=r"rope\.rotations$",  # a table that our model computes
    )

    def __init__(self, config: RecGRELAConfig, n_items: int, max_len: int) -> None:
        super().__init__(config, n_items, max_len)
        d = config.hidden_size
        self.position_embedding = nn.Embedding(max_len, d) if config.position == "learned" else None
        rotary = RotaryTable(d, config.rotary_base, max_len) if config.position == "rotary" else None
        self.blocks = nn.ModuleList(Block(config, rotary) for _ in range(config.num_layers))
        self.trains_on = ("last", "all") if config.mode == "causal" else ("last",)
        # Embeddings of positions are those of a window, so that its items are encoded anew when it moves.
        self.carries_state = config.mode == "causal" and config.position in ("rotary", "none")
        self.max_table = MAX_TABLE if config.position == "rotary" else None
        if config.position == "learned":
            self.max_positions = max_len
        self.reset_parameters()

    def embed(self, items: Tensor, sequences: Sequences) -> Tensor:
        if self.config.position in ("rotary", "none"):
            return super().embed(items, sequences)
        x = self.look_up(items)
        if self.position_embedding is not None:
            x = x + embedding(sequences.positions(), self.position_embedding.weight)
        else:
            x = x + sinusoids(sequences.max_seqlen, x)[sequences.positions()]
        return self.norm(self.dropout(x, sequences), None, sequences)[0]

    def encode(self, x: Tensor, sequences: Sequences) -> Tensor:
        *inner, last = self.blocks
        whole, branch = sequences.with_wanted(None), None
        for block in inner:
            x, branch = block(x, branch, whole)
        x, branch = last(x, branch, sequences)
        return x if branch is None else x + branch


def sinusoids(length: int, like: Tensor) -> Tensor:
    """Sinusoidal position embeddings [length, D] (Vaswani et al., 2017, section 3.5), D even."""
    table = rotary_table(length, like.shape[-1], dtype=like.dtype, device=like.device)
    return table.flip(-1).flatten(1)  # (cos, sin) -> (sin, cos)
