"""Modules made of the ops, on packed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.ops import dropout, gated_rela, gated_rela_last, mlp, rotary_table
from recgrela.ops.mlp import ACTIVATIONS

Activation = Literal["silu", "relu", "gelu"]


def takes_kernel(x: Tensor) -> bool:
    """Whether the CPU's `mlp` takes x: not in half precision, not under autocast."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
    )


@dataclass(frozen=True)
class Sequences:
    """How packed rows [T, ...] fall into B sequences.

    Attributes:
        cu_seqlens: [B + 1] int64, sequence b is rows cu_seqlens[b] .. cu_seqlens[b + 1].
        index: [T] int64, the sequence of each row.
        max_seqlen: the longest sequence, known on the host.
    """

    cu_seqlens: Tensor
    index: Tensor
    max_seqlen: int

    @staticmethod
    def of(cu_seqlens: Tensor, num_rows: int, max_seqlen: int) -> Sequences:
        batch = torch.arange(cu_seqlens.shape[0] - 1, device=cu_seqlens.device)
        index = torch.repeat_interleave(batch, cu_seqlens.diff(), output_size=num_rows)
        return Sequences(cu_seqlens, index, max_seqlen)

    def positions(self) -> Tensor:
        """[T] int64, the place of each row in its sequence, from 0."""
        rows = torch.arange(self.index.shape[0], device=self.index.device)
        return rows - self.cu_seqlens[self.index]

    def last(self) -> Tensor:
        """[B] int64, the last row of each sequence."""
        return self.cu_seqlens[1:] - 1


class Dropout(nn.Module):
    """Zeroes each element with probability `rate` and scales the others up to keep the mean."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape -> the same."""
        if not self.training:
            return x
        return dropout(x, self.rate) if x.device.type == "cpu" else F.dropout(x, self.rate)


class DropPath(nn.Module):
    """Stochastic depth: drops a whole sequence's branch with probability `rate`, scales the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, sequences: Sequences | None) -> Tensor:
        """x: [T, D], rows of the sequences, or (None) [B, D], a row of each -> the same shape."""
        if not self.training or self.rate == 0:
            return x
        batch = len(x) if sequences is None else sequences.cu_seqlens.shape[0] - 1
        keep = x.new_empty(batch).bernoulli_(1 - self.rate) / (1 - self.rate)
        return x * (keep if sequences is None else keep[sequences.index])[:, None]


class RotaryTable:
    """Rotary tables, kept: one for sequences of up to `max_len` rows, and one for the longest beyond.

    The first is the same tensor for as long as type and device are: a CUDA graph holds its address, and on
    CUDA the length of a table decides how sequences are cut, so the rounding. Not a buffer: `module.double()`
    must give float64 angles, not rounded ones.
    """

    def __init__(self, dim: int, base: float, max_len: int) -> None:
        self.dim, self.base, self.max_len = dim, base, max_len
        self._tables: list[Tensor | None] = [None, None]

    def __call__(self, length: int, like: Tensor) -> Tensor:
        """[>= length, dim / 2, 2] on the device of `like`, float64 for float64 and float32 for all else."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        which = int(length > self.max_len)
        t = self._tables[which]
        if t is None or t.shape[0] < length or t.dtype != dtype or t.device != like.device:
            rows = max(length, self.max_len)
            with torch.inference_mode(False):  # a table made while serving must also do for training
                t = rotary_table(rows, self.dim, self.base, dtype=dtype, device=like.device)
            if type(t) is Tensor:  # not the fake one that tracing makes
                self._tables[which] = t
        return t


class GatedRotaryLinearAttention(nn.Module):
    """The mixing half of a RecGRELA block, from the normed input to the output projection.

    Args:
        hidden_size: D.
        num_heads: divides D into heads of an even width.
        causal: prefix sums instead of the whole sequence.
        conv_width: taps of the local shortcut; 0 leaves it out.
        rotary: the angles, which the blocks of a model share; None leaves the rotation out.
        gate, gate_activation: the gate and its activation.
        input_projection: u Win before everything else but the gate.
        value_projection: a value matrix of its own; without it the values are the projected input.
        eps: added to the denominator.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        causal: bool,
        conv_width: int,
        rotary: RotaryTable | None,
        gate: bool,
        gate_activation: Activation,
        input_projection: bool,
        value_projection: bool,
        eps: float,
    ) -> None:
        super().__init__()
        d = hidden_size
        self.num_heads, self.causal, self.eps = num_heads, causal, eps
        self.gate_activation = gate_activation
        self.gate_proj = nn.Linear(d, d) if gate else None
        self.in_proj = nn.Linear(d, d) if input_projection else None
        self.qk_proj = nn.Linear(d, 2 * d)
        self.v_proj = nn.Linear(d, d) if value_projection else None
        # Only its parameters are used: the op convolves.
        self.conv = nn.Conv1d(d, d, conv_width, groups=d) if conv_width else None
        self.out_proj = nn.Linear(d, d)
        self.rotary = rotary

    def forward(self, u: Tensor, sequences: Sequences, rows: Tensor | None = None) -> Tensor:
        """u: [T, D] -> [T, D]; or with `rows` [B], one of each sequence (its last, if causal), -> [B, D]."""
        x = u if self.in_proj is None else self.in_proj(u)
        v = x if self.v_proj is None else self.v_proj(x)
        gate = None if self.gate_proj is None else self.gate_proj(u if rows is None else u[rows])
        fused_gate = gate if self.gate_activation == "silu" else None
        options: dict[str, Any] = {
            "num_heads": self.num_heads,
            "rotary": None if self.rotary is None else self.rotary(sequences.max_seqlen, u),
            "conv_weight": None if self.conv is None else self.conv.weight.squeeze(1),
            "conv_bias": None if self.conv is None else self.conv.bias,
            "eps": self.eps,
        }
        if rows is None:
            qk = self.qk_proj(x)
            y = gated_rela(qk, None, v, fused_gate, sequences.cu_seqlens, causal=self.causal, **options)
        else:
            d = len(self.qk_proj.bias) // 2
            q = F.linear(x[rows], self.qk_proj.weight[:d], self.qk_proj.bias[:d])
            k = F.linear(x, self.qk_proj.weight[d:], self.qk_proj.bias[d:])
            y = gated_rela_last(q, k, v, fused_gate, sequences.cu_seqlens, rows, **options)
        if gate is not None and fused_gate is None:
            y = y * ACTIVATIONS[self.gate_activation](gate)
        return self.out_proj(y)


class MLP(nn.Module):
    """D -> ratio D -> D with dropout behind the activation and behind the output.

    On the CPU, in float32 and float64, it is one op.
    """

    def __init__(self, hidden_size: int, ratio: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, ratio * hidden_size)
        self.fc2 = nn.Linear(ratio * hidden_size, hidden_size)
        self.activation = activation
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: [T, D] -> [T, D]."""
        if takes_kernel(x):
            weights = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
            rate = self.dropout.rate if self.training else 0.0
            return mlp(x, *weights, activation=self.activation, dropout=rate)
        return self.dropout(self.fc2(self.dropout(ACTIVATIONS[self.activation](self.fc1(x)))))
