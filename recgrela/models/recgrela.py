"""RecGRELA, gated rotary-enhanced linear attention for sequential recommendation (arXiv 2506.13315)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.errors import ConfigError
from recgrela.models.base import SequenceModel, check_choices
from recgrela.nn import (
    MLP,
    Activation,
    Dropout,
    DropPath,
    GatedRotaryLinearAttention,
    RotaryTable,
    Sequences,
)


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
        for field in ("hidden_size", "num_heads", "num_layers", "mlp_ratio"):
            if getattr(self, field) < 1:
                raise ConfigError(f"model.{field} must be at least 1, got {getattr(self, field)}")
        for field in ("dropout", "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(f"model.{field} must be at least 0 and below 1, got {getattr(self, field)}")
        if self.hidden_size % self.num_heads or self.hidden_size // self.num_heads % 2:
            raise ConfigError(
                f"model.num_heads={self.num_heads} must divide model.hidden_size={self.hidden_size} "
                "into heads of an even width"
            )
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
        self.mlp = MLP(d, c.mlp_ratio, c.mlp_activation, c.dropout)
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
        # The padding row is scored and trained as an output row, but not through look-ups.
        self.item_embedding = nn.Embedding(n_items, d, padding_idx=0)
        self.position_embedding = nn.Embedding(max_len, d) if config.position == "learned" else None
        self.dropout = Dropout(config.dropout)
        self.norm = nn.LayerNorm(d, eps=1e-12)
        rotary = RotaryTable(d, config.rotary_base, max_len) if config.position == "rotary" else None
        self.blocks = nn.ModuleList(Block(config, rotary) for _ in range(config.num_layers))
        self.trains_on = ("last", "all") if config.mode == "causal" else ("last",)
        self.bounded = config.padding == "attend" or config.position == "learned"
        self.padded_len = max_len if config.padding == "attend" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 0.02) for every Linear and Embedding, the padding row too; PyTorch's default for the rest."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def hidden_states(self, items: Tensor, cu_seqlens: Tensor, max_seqlen: int, last_only: bool) -> Tensor:
        if self.bounded and max_seqlen > self.max_len:
            raise ValueError(
                f"a sequence of {max_seqlen} items does not fit this model's max_len={self.max_len}"
            )
        sequences = Sequences.of(cu_seqlens, items.shape[0], max_seqlen)
        real = None
        rows = sequences.last()
        if self.config.padding == "attend":
            items, sequences, real = self._pad(items, sequences)
            rows = real[rows]
        x = F.embedding(items, self.item_embedding.weight, padding_idx=0)
        if self.position_embedding is not None:
            x = x + self.position_embedding(sequences.positions())
        elif self.config.position == "sinusoidal":
            x = x + sinusoids(sequences.max_seqlen, x)[sequences.positions()]
        x = self.norm(self.dropout(x))
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, sequences)
        if last_only:
            return last(x, sequences, rows)
        x = last(x, sequences)
        return x if real is None else x[real]

    def _pad(self, items: Tensor, sequences: Sequences) -> tuple[Tensor, Sequences, Tensor]:
        """Every sequence filled up to max_len with item 0; also where the real items went, [T]."""
        batch, length = sequences.cu_seqlens.shape[0] - 1, self.max_len
        real = sequences.index * length + sequences.positions()
        padded = items.new_zeros(batch * length).index_copy(0, real, items)
        cu_seqlens = torch.arange(batch + 1, device=items.device) * length
        return padded, Sequences.of(cu_seqlens, batch * length, length), real

    @classmethod
    def from_official(cls, state_dict: dict[str, Tensor], config: dict[str, Any]) -> RecGRELA:
        # The rotation table is a buffer of theirs; ours is computed.
        state = {name: x for name, x in state_dict.items() if not name.endswith("rope.rotations")}
        blocks = {int(m[1]) for name in state if (m := re.match(r"GRELA_block\.(\d+)\.", name))}
        try:
            n_items, hidden_size = state["item_embedding.weight"].shape
            max_len = int(config["max_len"] if "max_len" in config else config["MAX_ITEM_LIST_LENGTH"])
            own = RecGRELAConfig(
                hidden_size=hidden_size,
                num_heads=int(config["num_heads"]),
                num_layers=len(blocks),
                mode="bidirectional",
                padding="attend",
                conv_width=state["GRELA_block.0.attn.conv1d.weight"].shape[-1],
                dropout=float(config.get("dropout_prob", RecGRELAConfig.dropout)),
                drop_path=float(config.get("drop_path", RecGRELAConfig.drop_path)),
            )
        except KeyError as error:
            raise ConfigError(f"the official RecGRELA parameters or settings lack {error}") from None
        except (ValueError, TypeError, IndexError) as error:
            raise ConfigError(f"not the parameters or settings of an official RecGRELA: {error}") from None
        found = {"n_items": n_items, "hidden_size": hidden_size, "num_layers": len(blocks)}
        for name, value in found.items():
            if config.get(name, value) != value:
                raise ConfigError(f"the setting {name} is {config[name]}, the parameters have {value}")
        dtypes = {x.dtype for x in state.values()}
        if len(dtypes) != 1 or not (dtype := dtypes.pop()).is_floating_point:
            raise ConfigError("the official parameters must all be of one floating dtype")
        with torch.random.fork_rng(devices=[]):  # its fresh weights are overwritten
            model = cls(own, n_items, max_len).to(dtype)
        try:
            model.load_state_dict({own_name(name): x for name, x in state.items()})
        except RuntimeError as error:
            raise ConfigError(f"not the parameters of an official RecGRELA: {error}") from None
        return model.eval()


OFFICIAL_NAMES = [  # theirs (a pattern) -> ours
    (r"^LayerNorm\.", "norm."),
    (r"^GRELA_block\.", "blocks."),
    (r"\.attn\.qk\.", ".attention.qk_proj."),
    (r"\.attn\.conv1d\.", ".attention.conv."),
    (r"\.act_proj\.", ".attention.gate_proj."),
    (r"\.in_proj\.", ".attention.in_proj."),
    (r"\.out_proj\.", ".attention.out_proj."),
    (r"\.LayerNorm([12])\.", r".norm\1."),
]


def own_name(official: str) -> str:
    """Our name of a parameter of the authors' model."""
    for pattern, ours in OFFICIAL_NAMES:
        official = re.sub(pattern, ours, official)
    return official


def sinusoids(length: int, like: Tensor) -> Tensor:
    """Sinusoidal position embeddings [length, D] (Vaswani et al., 2017, section 3.5), D even."""
    d = like.shape[-1]
    rates = torch.exp(
        torch.arange(0, d, 2, device=like.device, dtype=torch.float64) * (-math.log(10000.0) / d)
    )
    angles = torch.arange(length, device=like.device, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(like.dtype)
