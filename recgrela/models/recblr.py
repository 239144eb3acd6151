"""RecBLR, behaviour-dependent linear recurrent units (arXiv 2406.12580)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.models.base import SequenceModel
from recgrela.models.official import count_of
from recgrela.nn import Dropout, FeedForward, Sequences, through
from recgrela.ops import causal_conv1d, linear_scan
from recgrela.settings.fields import setting
from recgrela.settings.model import ModelConfig


@dataclass(frozen=True)
class RecBLRConfig(ModelConfig):
    """Settings of RecBLR."""

    name: Literal["RecBLR"] = setting("RecBLR", "Name of the model.")
    conv_width: int = setting(4, "Kernel size of the convolution.", min=1)
    expand: int = setting(2, "Channels of the recurrence, as a multiple of hidden_size.", min=1)
    warm_up: bool = setting(
        True, "Begin each sequence from a learned state, as published; false begins from zero."
    )


class GatedRecurrence(nn.Module):
    """Convolution, then h_t = alpha_t h_{t-1} + beta_t u_t with gates that the data choose, then a gate.

    Args:
        config: settings.
        warm_up_rows: rows of zeros before every sequence. The authors pad on the left to a power of two, in
            front of a convolution with a bias: the rows are not zero behind it, and leave a state that is
            learned and the same for all sequences.
    """

    def __init__(self, config: RecBLRConfig, warm_up_rows: int) -> None:
        super().__init__()
        inner, self.warm_up_rows = config.expand * config.hidden_size, warm_up_rows
        self.in_proj = nn.Linear(config.hidden_size, 2 * inner, bias=False)
        # Only its parameters are used: the op convolves.
        self.conv = nn.Conv1d(inner, inner, config.conv_width, groups=inner)
        self.gates = nn.Linear(inner, 2 * inner)
        # softplus(Lambda) from -log .9 to -log .999: where the gate is open, alpha starts in [.9, .999].
        slow, fast = (math.log(math.expm1(-math.log(r))) for r in (0.9, 0.999))
        self.Lambda = nn.Parameter(torch.linspace(slow, fast, inner))
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def gated(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """u [T, I] -> alpha and beta u, [T, I]."""
        recurrence, entry = self.gates(u).chunk(2, dim=1)
        alpha = torch.exp(-F.softplus(self.Lambda) * torch.sigmoid(recurrence))
        return alpha, torch.sqrt(1 - alpha.square() + 1e-8) * torch.sigmoid(entry) * u

    def warm_state(self, batch: int) -> Tensor | None:
        """[B, I], the state that rows of zeros leave."""
        if self.warm_up_rows == 0:
            return None
        # The convolution of zeros is its bias.
        alpha, driven = self.gated(F.silu(cast(Tensor, self.conv.bias))[None])
        rows = driven.expand(self.warm_up_rows, -1)
        offsets = torch.arange(2, device=rows.device) * self.warm_up_rows  # made there: a CUDA graph holds it
        _, state = linear_scan(rows, alpha[0], offsets, return_state=True)
        return state.expand(batch, -1)

    def forward(self, x: Tensor, sequences: Sequences, rows: Tensor | None = None) -> Tensor:
        """x: [T, D] -> [T, D]; or with `rows` [B], the last of each sequence, -> [B, D]."""
        u, z = self.in_proj(x).chunk(2, dim=1)
        u = causal_conv1d(u, self.conv.weight.squeeze(1), self.conv.bias, sequences.cu_seqlens)
        alpha, driven = self.gated(u)
        h = linear_scan(driven, alpha, sequences.cu_seqlens, initial_state=self.warm_state(sequences.batch))
        h, z = (h, z) if rows is None else (h[rows], z[rows])
        return self.out_proj(F.silu(z) * h)


class RecurrentLayer(nn.Module):
    """LN(Drop(recurrence) + x), then a feed-forward network."""

    def __init__(self, config: RecBLRConfig, warm_up_rows: int) -> None:
        super().__init__()
        self.recurrence = GatedRecurrence(config, warm_up_rows)
        self.dropout = Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.ffn = FeedForward(config.hidden_size, 4 * config.hidden_size, "silu", config.dropout)

    def forward(self, x: Tensor, sequences: Sequences, rows: Tensor | None = None) -> Tensor:
        """x: [T, D] -> [T, D]; or with `rows` [B], the last of each sequence, -> [B, D]."""
        y = self.dropout(self.recurrence(x, sequences, rows))
        return self.ffn(self.norm(y + (x if rows is None else x[rows])))


class RecBLR(SequenceModel):
    """Causal; the state before the first item is what max_len rows fall short of a power of two by."""

    config: RecBLRConfig
    trains_on = ("last", "all")

    def __init__(self, config: RecBLRConfig, n_items: int, max_len: int) -> None:
        super().__init__(config, n_items, max_len)
        rows = (1 << (max_len - 1).bit_length()) - max_len if config.warm_up else 0
        self.layers = nn.ModuleList(RecurrentLayer(config, rows) for _ in range(config.num_layers))
        self.reset_parameters()

    def encode(self, x: Tensor, sequences: Sequences, rows: Tensor | None) -> Tensor:
        return through(self.layers, x, sequences, rows=rows)

    OFFICIAL_NAMES: ClassVar = [
        (r"^recurrent_layers\.", "layers."),
        (r"\.behavior_modeling\.", ".recurrence."),
        (r"\.input\.", ".in_proj."),
        (r"\.output\.", ".out_proj."),
        (r"\.conv1d\.", ".conv."),
        (r"\.ffn\.w_([12])\.", r".ffn.mlp.fc\1."),
        (r"(^|\.)layer_norm\.", r"\1norm."),
    ]

    @classmethod
    def official_config(cls, state: dict[str, Tensor], settings: dict[str, Any]) -> RecBLRConfig:
        inner = state["recurrent_layers.0.behavior_modeling.gates.weight"].shape[1]
        hidden = state["item_embedding.weight"].shape[1]
        return RecBLRConfig(
            hidden_size=hidden,
            num_layers=count_of(state, r"^recurrent_layers\.(\d+)\."),
            conv_width=state["recurrent_layers.0.behavior_modeling.conv1d.weight"].shape[-1],
            expand=inner // hidden,
            dropout=float(settings.get("dropout_prob", RecBLRConfig.dropout)),
        )
