"""LRURec, linear recurrent units for sequential recommendation (arXiv 2310.02367)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from recgrela.models.base import PER_ITEM, SequenceModel
from recgrela.models.official import AuthorSettings, OfficialWeights, State, count_modules, given
from recgrela.nn import AddNorm, FeedForward, Linear, Sequences, Stateful, run_blocks, stream_scan
from recgrela.ops import linear_scan
from recgrela.parallel.table import ShardedTable, draw
from recgrela.settings.fields import setting
from recgrela.settings.model import ModelConfig
from recgrela.system.errors import ConfigError

NORM_EPS = 1e-5  # PyTorch's default; the other models use 1e-12


@dataclass(frozen=True)
class LRURecConfig(ModelConfig):
    """Settings of LRURec; the recurrence has 2 D complex states."""

    name: Literal["LRURec"] = setting("LRURec", "Name of the model.")
    r_min: float = setting(0.8, "Smallest initial modulus of the recurrence's eigenvalues.", min=0, below=1)
    r_max: float = setting(0.99, "Largest initial modulus of the recurrence's eigenvalues.", above=0, below=1)

    def check_together(self) -> None:
        if self.r_min >= self.r_max:
            raise ConfigError(f"model.r_min: {self.r_min} is not below model.r_max {self.r_max}")


class LRU(Stateful, nn.Module):
    """LN(Dropout(real(C h)) + x) with h_t = lambda h_{t-1} + gamma (W x_t + b), complex and diagonal.

    lambda = exp(-exp(nu) + i exp(theta)). The parameters are the logarithms of nu, theta and gamma. Complex
    matrices are stored as real ones with alternating real and imaginary rows or columns, because real
    products do half the work here: x and real(C h) are real.
    """

    def __init__(self, config: LRURecConfig) -> None:
        super().__init__()
        d, states = config.hidden_size, 2 * config.hidden_size
        low, high = config.r_min**2, config.r_max**2
        # Uniform on the ring; gamma gives states of unit size for white inputs (arXiv 2303.06349, 3.4).
        draws = torch.rand(2, states).clamp(min=1e-6)  # logarithms must be finite
        nu = -0.5 * (draws[0] * (high - low) + low).log()
        theta = draws[1] * (2 * math.pi)
        gamma = (1 - torch.exp(-2 * nu)).sqrt()
        self.params_log = nn.Parameter(torch.stack([nu, theta, gamma]).log())
        self.in_proj = Linear(d, 2 * states)
        self.out_proj = Linear(2 * states, d)
        self.norm = AddNorm(d, eps=NORM_EPS, post_norm=True, dropout=config.dropout)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x: [T, D] -> [T, D], or the wanted rows [B, D]."""
        nu, theta, gamma = self.params_log.exp()
        inputs, x = self.in_proj.with_input(x)
        inputs = inputs.to(nu.dtype).unflatten(1, (-1, 2)) * gamma[:, None]
        coefficients = torch.polar(torch.exp(-nu), theta)
        rows, state = torch.view_as_complex(inputs), self.carried(sequences)
        if state is None:
            h = linear_scan(rows, coefficients, sequences.cu_seqlens)
        else:
            h = stream_scan(rows, coefficients, sequences, state)
        y = self.out_proj(torch.view_as_real(sequences.select(h)).flatten(1))
        return self.norm(sequences.select(x), y, sequences)[0]

    def init_state(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        dtype = self.params_log.dtype.to_complex()
        return {"scan": like.new_zeros(batch, self.params_log.shape[1], dtype=dtype)}


class LRUBlock(nn.Module):
    """The recurrence, then a feed-forward network."""

    def __init__(self, config: LRURecConfig) -> None:
        super().__init__()
        self.lru = LRU(config)
        d = config.hidden_size
        self.ffn = FeedForward(d, 4 * d, "gelu", config.dropout, eps=NORM_EPS)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x: [T, D] -> [T, D], or the wanted rows [B, D]."""
        return self.ffn(self.lru(x, sequences), sequences)


def official_layout(state: State) -> State:
    """Converts complex matrices and biases to real ones."""
    ours = {}
    for name, x in state.items():
        if name.endswith("in_proj.weight"):
            x = torch.view_as_real(x).transpose(1, 2).flatten(0, 1)
        elif name.endswith("in_proj.bias"):
            x = torch.view_as_real(x).flatten()
        elif name.endswith("out_proj.weight"):  # real(C h) = Re C Re h - Im C Im h
            x = torch.view_as_real(x.conj().resolve_conj()).flatten(1)
        elif name.endswith("out_proj.bias"):
            x = x.real.contiguous()  # no score depends on the imaginary part
        ours[name] = x
    return ours


def official_config(state: State, settings: AuthorSettings) -> LRURecConfig:
    return LRURecConfig(
        hidden_size=state["item_embedding.weight"].shape[1],
        num_layers=count_modules(state, r"lru_blocks\.(\d+)\."),
        **given(settings, dropout="dropout_prob"),
    )


class LRURec(SequenceModel):
    """A causal complex recurrence; the scores have a bias per item.

    The authors pad on the left to a power of two and mask the padding's state. Packed rows give the same
    result without padding.
    """

    config: LRURecConfig
    trains_on = ("last", "all")
    carries_state = True
    norm_eps = NORM_EPS
    official = OfficialWeights(
        official_config,
        [
            (r"^bias$", "item_bias"),
            (r"^encoder\.lru_blocks\.", "blocks."),
            (r"\.lru_layer\.", ".lru."),
            (r"\.feed_forward\.w_([12])\.", r".ffn.mlp.fc\1."),
            (r"\.feed_forward\.", ".ffn."),
            (r"(^|\.)layer_norm\.", r"\1norm."),
        ],
        official_layout,
    )

    def __init__(self, config: LRURecConfig, n_items: int, max_len: int) -> None:
        super().__init__(config, n_items, max_len)
        self.blocks = nn.ModuleList(LRUBlock(config) for _ in range(config.num_layers))
        self.item_bias = nn.Parameter(torch.empty(len(self.item_embedding.weight)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all parameters but norms and eigenvalues with std 0.02, truncated at +-0.04."""
        fill = partial(nn.init.trunc_normal_, std=0.02, a=-0.04, b=0.04)
        rows = self.item_embedding.rows if isinstance(self.item_embedding, ShardedTable) else None
        for name, parameter in self.named_parameters():
            if "norm" not in name and "params_log" not in name:
                draw(parameter, fill, rows if name in PER_ITEM else None)

    def encode(self, x: Tensor, sequences: Sequences) -> Tensor:
        return run_blocks(self.blocks, x, sequences)
