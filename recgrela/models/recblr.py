"""RecBLR, behavior-dependent linear recurrent units (arXiv 2406.12580)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.models.base import SequenceModel
from recgrela.models.official import AuthorSettings, OfficialWeights, State, count_modules, given
from recgrela.nn import (
    Linear,
    PostNormBlock,
    Sequences,
    Stateful,
    conv_history,
    run_blocks,
    stream_conv,
    stream_scan,
)
from recgrela.ops import linear_scan
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


class GatedRecurrence(Stateful, nn.Module):
    """A convolution, then h_t = alpha_t h_{t-1} + beta_t u_t with gates computed from u, then a gate.

    Args:
        config: settings.
        warm_up_rows: the number of zero rows before every sequence. The authors pad on the left to a power of
            two, before a convolution with a bias. Its outputs for the padding are not zero, and leave a
            learned state that is the same for all sequences.
    """

    def __init__(self, config: RecBLRConfig, warm_up_rows: int) -> None:
        super().__init__()
        inner, self.warm_up_rows = config.expand * config.hidden_size, warm_up_rows
        self.in_proj = Linear(config.hidden_size, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, config.conv_width, groups=inner)  # holds the op's parameters
        self.gates = Linear(inner, 2 * inner)
        # softplus(Lambda) from -log .9 to -log .999: with an open gate alpha starts in [.9, .999].
        slow, fast = (math.log(math.expm1(-math.log(r))) for r in (0.9, 0.999))
        self.Lambda = nn.Parameter(torch.linspace(slow, fast, inner))
        self.out_proj = Linear(inner, config.hidden_size, bias=False)

    def gated(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """u [T, I] -> alpha and beta u, [T, I] each."""
        recurrence_gate, input_gate = self.gates(u).chunk(2, dim=1)
        alpha = torch.exp(-F.softplus(self.Lambda) * torch.sigmoid(recurrence_gate))
        return alpha, torch.sqrt(1 - alpha.square() + 1e-8) * torch.sigmoid(input_gate) * u

    def warm_state(self, batch: int) -> Tensor | None:
        """The state after the zero rows, [B, I]; None if there are none."""
        if self.warm_up_rows == 0:
            return None
        # The convolution of zeros is its bias.
        alpha, beta_u = self.gated(F.silu(cast(Tensor, self.conv.bias))[None])
        rows = beta_u.expand(self.warm_up_rows, -1)
        # Computed on the device: a CUDA graph cannot copy it from the host.
        offsets = torch.arange(2, device=rows.device) * self.warm_up_rows
        _, state = linear_scan(rows, alpha[0], offsets, return_state=True)
        return state.expand(batch, -1)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x: [T, D] -> [T, D], or the wanted rows [B, D]."""
        u, z = self.in_proj(x).chunk(2, dim=1)
        state = self.carried(sequences)
        alpha, beta_u = self.gated(stream_conv(self.conv, u, sequences, state))
        if state is None:
            warm = self.warm_state(sequences.batch)
            h = linear_scan(beta_u, alpha, sequences.cu_seqlens, initial_state=warm)
        else:
            h = stream_scan(beta_u, alpha, sequences, state)
        return self.out_proj(F.silu(sequences.select(z)) * sequences.select(h))

    def init_state(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        warm = self.warm_state(batch)
        scan = like.new_zeros(batch, *self.Lambda.shape) if warm is None else warm.contiguous()
        return {"history": conv_history(self.conv, batch, like), "scan": scan}


def official_config(state: State, settings: AuthorSettings) -> RecBLRConfig:
    inner = state["recurrent_layers.0.behavior_modeling.gates.weight"].shape[1]
    hidden = state["item_embedding.weight"].shape[1]
    return RecBLRConfig(
        hidden_size=hidden,
        num_layers=count_modules(state, r"^recurrent_layers\.(\d+)\."),
        conv_width=state["recurrent_layers.0.behavior_modeling.conv1d.weight"].shape[-1],
        expand=inner // hidden,
        **given(settings, dropout="dropout_prob"),
    )


class RecBLR(SequenceModel):
    """A causal recurrence, warmed up by the zero rows that pad `max_len` to a power of two."""

    config: RecBLRConfig
    trains_on = ("last", "all")
    carries_state = True
    official = OfficialWeights(
        official_config,
        [
            (r"^recurrent_layers\.", "layers."),
            (r"\.behavior_modeling\.", ".recurrence."),
            (r"\.input\.", ".in_proj."),
            (r"\.output\.", ".out_proj."),
            (r"\.conv1d\.", ".conv."),
            (r"\.ffn\.w_([12])\.", r".ffn.mlp.fc\1."),
            (r"(^|\.)layer_norm\.", r"\1norm."),
        ],
    )

    def __init__(self, config: RecBLRConfig, n_items: int, max_len: int) -> None:
        super().__init__(config, n_items, max_len)
        c = config
        rows = (1 << (max_len - 1).bit_length()) - max_len if c.warm_up else 0
        self.layers = nn.ModuleList(
            PostNormBlock("recurrence", GatedRecurrence(c, rows), c.hidden_size, c.dropout, "silu")
            for _ in range(c.num_layers)
        )
        self.reset_parameters()

    def encode(self, x: Tensor, sequences: Sequences) -> Tensor:
        return run_blocks(self.layers, x, sequences)
