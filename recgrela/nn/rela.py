"""Gated rotary linear attention, the mixer of a RecGRELA block."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from recgrela.nn.basic import Activation, AddNorm, Linear, linear_pair
from recgrela.nn.sequences import Sequences
from recgrela.nn.state import Stateful
from recgrela.ops import (
    RelaState,
    gated_rela,
    gated_rela_last,
    gated_rela_step,
    linear,
    rela_projections,
    rotary_table,
    rotary_turns,
)
from recgrela.ops.checks import state_dtype
from recgrela.ops.mlp import ACTIVATIONS
from recgrela.ops.rela_projections import has_kernel


class RotaryTable:
    """A cache of two rotary tables: one of `max_len` positions, and one for longer sequences.

    While dtype and device stay the same, so does the first table: a CUDA graph holds its address, and on CUDA
    its length decides how sequences are cut into segments, which affects rounding. The tables are not
    buffers, because `module.double()` must get angles that are computed in float64.
    """

    def __init__(self, dim: int, base: float, max_len: int) -> None:
        self.dim, self.base, self.max_len = dim, base, max_len
        self._tables: list[Tensor | None] = [None, None]
        self._turns: Tensor | None = None

    def __call__(self, length: int, like: Tensor) -> Tensor:
        """A table [>= length, dim / 2, 2] on the device of `like`, float64 if `like` is, else float32."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        index = int(length > self.max_len)
        table = self._tables[index]
        if table is None or table.shape[0] < length or table.dtype != dtype or table.device != like.device:
            with torch.inference_mode(False):  # training may use the table later
                table = rotary_table(
                    max(length, self.max_len), self.dim, self.base, dtype=dtype, device=like.device
                )
            if type(table) is Tensor:  # not a fake tensor of a trace, which must not be cached
                self._tables[index] = table
        return table

    def turns(self, like: Tensor) -> Tensor:
        """The exact frequencies [dim / 2] int64 of `rotary_turns`, on the device of `like`."""
        if self._turns is None or self._turns.device != like.device:
            turns = rotary_turns(self.dim, self.base, device=like.device)
            if type(turns) is not Tensor:  # of a trace
                return turns
            self._turns = turns
        return self._turns


class GatedRotaryLinearAttention(Stateful, nn.Module):
    """The attention branch of a RecGRELA block: projections, `gated_rela` and output projection.

    Args:
        hidden_size: D.
        num_heads: the number of heads; divides D into heads of an even width.
        causal: whether a row attends to rows up to itself (True) or to the whole sequence (False).
        kernel_size: the kernel size of the local shortcut's convolution; 0 omits the shortcut.
        rotary: the table of angles, shared by the blocks of a model; None omits the rotation.
        gate: whether to multiply the result by an activated gate.
        gate_activation: the activation of the gate.
        input_projection: whether queries, keys and values are computed from a projection of the input.
        value_projection: whether values have a further projection; if not, they are the projected input.
        eps: added to the denominator.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        causal: bool,
        kernel_size: int,
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
        self.gate_proj = Linear(d, d) if gate else None
        self.in_proj = Linear(d, d) if input_projection else None
        self.qk_proj = Linear(d, 2 * d)
        self.v_proj = Linear(d, d) if value_projection else None
        # Holds the parameters of the op.
        self.conv = nn.Conv1d(d, d, kernel_size, groups=d) if kernel_size else None
        self.out_proj = Linear(d, d)
        self.rotary = rotary

    def forward(
        self, norm: AddNorm, x: Tensor, branch: Tensor | None, sequences: Sequences
    ) -> tuple[Tensor, Tensor]:
        """The first half of a pre-norm block: attention(norm(s)), where s = x + branch.

        Args:
            norm: the norm before the attention.
            x: the residual stream [T, D].
            branch: the rows to add to it, or None.
            sequences: the sequences of the rows. The wanted rows must be last items if causal.

        Returns:
            The residual stream, and the rows to add to it, [T, D] or the wanted rows [B, D].
        """
        state = self.carried(sequences)
        wanted, sequences = sequences, sequences if state is None else sequences.with_wanted(None)
        is_fused = branch is None and self.in_proj is not None and self.v_proj is None
        if is_fused and has_kernel(x, x.shape[1] * (2 if sequences.wanted is None else 1)):
            x, q, k, v, gate = self.project_fused(norm, x, sequences)
        else:
            x, u = norm(x, branch, sequences)
            q, k, v, gate = self.project(u, sequences)
            x = sequences.select(x)
        fused_gate = gate if self.gate_activation == "silu" else None
        options: dict[str, Any] = {
            "num_heads": self.num_heads,
            "conv_weight": None if self.conv is None else self.conv.weight.squeeze(1),
            "conv_bias": None if self.conv is None else self.conv.bias,
            "eps": self.eps,
        }
        if state is not None:
            y = self.resume(q, k, v, fused_gate, sequences, RelaState(**state), options)
        elif sequences.wanted is None:
            options["rotary"] = self.rotary_rows(sequences.max_seqlen, v)
            y = gated_rela(q, k, v, fused_gate, sequences.cu_seqlens, causal=self.causal, **options)
        else:
            assert k is not None
            options["rotary"] = self.rotary_rows(sequences.max_seqlen, v)
            y = gated_rela_last(q, k, v, fused_gate, sequences.cu_seqlens, sequences.wanted, **options)
        if gate is not None and fused_gate is None:
            y = y * ACTIVATIONS[self.gate_activation](gate)
        if state is not None:
            x, y = wanted.select(x), wanted.select(y)
        return x, self.out_proj(y)

    @property
    def is_plain(self) -> bool:
        """Whether `rela_block_step` computes this form: an input projection, no value projection, SiLU."""
        with_silu = self.gate_proj is None or self.gate_activation == "silu"
        return self.in_proj is not None and self.v_proj is None and with_silu

    def rotary_rows(self, length: int, like: Tensor) -> Tensor | None:
        """The rotary table of at least `length` positions; None without rotation."""
        return None if self.rotary is None else self.rotary(length, like)

    # ---- the state after earlier rows

    def init_state(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        d, dtype = self.out_proj.in_features, state_dtype(like.dtype)
        head, rows = d // self.num_heads, 0 if self.conv is None else self.conv.kernel_size[0] - 1
        return RelaState(
            kv_state=like.new_zeros(batch, self.num_heads, head + 1, head, dtype=dtype),
            history=like.new_zeros(batch, rows, d),
            position=like.new_zeros(batch, dtype=torch.int64),
        )._asdict()

    def resume(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor,
        gate: Tensor | None,
        sequences: Sequences,
        state: RelaState,
        options: dict[str, Any],
    ) -> Tensor:
        """The attention of rows that follow `state`, which is updated in place, [T, D]."""
        if sequences.is_step:
            turns = None if self.rotary is None else self.rotary.turns(v)
            return gated_rela_step(q, k, v, gate, state, turns=turns, **options)
        rotary = self.rotary_rows(sequences.max_position, v)
        y, after = gated_rela(
            q,
            k,
            v,
            gate,
            sequences.cu_seqlens,
            causal=True,
            rotary=rotary,
            initial_state=state,
            return_state=True,
            **options,
        )
        for tensor, new in zip(state, after, strict=True):
            tensor.copy_(new)
        return y

    def project(self, u: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Projects normalized rows u [T, D] to queries, keys, values and the gate.

        Returns:
            q, k, v and gate or None. If all rows are wanted, q is [T, 2 D] with the keys, and k is None; else
            q and gate are those of the wanted rows.
        """
        # The wanted rows are projected apart, so that the gradient of one selection is as large as u.
        if sequences.wanted is None:
            x, gate = self.project_input(u)
            if self.v_proj is None:
                qk, v = self.qk_proj.with_input(x)
                return qk, None, v, gate
            qk, v = linear_pair(self.qk_proj, self.v_proj, x)
            return qk, None, v, gate
        (q_weight, q_bias), (k_weight, k_bias) = self.split_qk()
        x, u = (u, u) if self.in_proj is None else self.in_proj.with_input(u)
        wanted, gate = self.project_input(sequences.select(u))
        q = linear(wanted, q_weight, q_bias)
        if self.v_proj is None:
            k, v = linear(x, k_weight, k_bias, return_x=True)
        else:
            k, v = linear(x, k_weight, k_bias, self.v_proj.weight, self.v_proj.bias)
        return q, k, v, gate

    def project_input(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """u -> the input of queries, keys and values, and the gate or None, all [T, D]."""
        if self.gate_proj is None:
            return (u if self.in_proj is None else self.in_proj(u)), None
        if self.in_proj is None:
            return u, self.gate_proj(u)
        return linear_pair(self.in_proj, self.gate_proj, u)

    def project_fused(
        self, norm: AddNorm, x: Tensor, sequences: Sequences
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
        """The norm of the residual stream x [T, D] and `project`, as one op, or two if few rows are wanted.

        Returns:
            The residual stream of the wanted rows, and what `project` returns.
        """
        assert self.in_proj is not None
        op = partial(
            rela_projections,
            norm_weight=norm.weight,
            norm_bias=norm.bias,
            in_weight=self.in_proj.weight,
            in_bias=self.in_proj.bias,
            eps=norm.eps,
        )
        no_gate: dict[str, Any] = {"gate_weight": None, "gate_bias": None}
        gates = no_gate
        if self.gate_proj is not None:
            gates = {"gate_weight": self.gate_proj.weight, "gate_bias": self.gate_proj.bias}
        if sequences.wanted is None:
            x, v, gate, q = op(x, qk_weight=self.qk_proj.weight, qk_bias=self.qk_proj.bias, **gates)
            return x, q, None, v, gate
        (q_weight, q_bias), (k_weight, k_bias) = self.split_qk()
        x, v, _, k = op(x, qk_weight=k_weight, qk_bias=k_bias, rows=sequences.wanted, **no_gate)
        x, _, gate, q = op(x, qk_weight=q_weight, qk_bias=q_bias, **gates)
        return x, q, k, v, gate

    def split_qk(self) -> list[tuple[Tensor, Tensor]]:
        """The weights and biases of queries and of keys; slices would get gradients of the whole size."""
        return list(zip(self.qk_proj.weight.chunk(2), self.qk_proj.bias.chunk(2), strict=True))
