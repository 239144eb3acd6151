"""The mixing half of a RecGRELA block."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.nn.basic import Activation
from recgrela.nn.sequences import Sequences
from recgrela.ops import gated_rela, gated_rela_last, rotary_table
from recgrela.ops.mlp import ACTIVATIONS


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
