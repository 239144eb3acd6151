"""Operands of gated_rela on the CPU, shared by its tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from python_tests.support.tensors import assert_close, cu_seqlens_of
from recgrela.ops import RelaState, gated_rela, gated_rela_reference, rotary_table


class RelaOperands:
    """Random operands; q and k come from one projection, as in the model."""

    def __init__(
        self,
        lengths: list[int],
        dim: int = 64,
        num_heads: int = 4,
        *,
        causal: bool,
        rotary: bool = True,
        gate: bool = True,
        kernel_size: int = 4,
        dtype: torch.dtype = torch.float64,
        side_by_side: bool = False,
    ) -> None:
        def make(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=dtype).requires_grad_()

        rows = sum(lengths)
        self.side_by_side = side_by_side
        self.cu_seqlens = cu_seqlens_of(lengths)
        self.inputs = {"qk": make(rows, 2 * dim), "v": make(rows, dim)}
        if gate:
            self.inputs["g"] = make(rows, dim)
        if kernel_size:
            self.inputs |= {"conv_weight": make(dim, kernel_size), "conv_bias": make(dim)}
        self.options: dict[str, Any] = {"num_heads": num_heads, "causal": causal}
        if rotary:
            self.options["rotary"] = rotary_table(max(lengths, default=0), dim, dtype=dtype)
        self.d_y = torch.randn(rows, dim, dtype=dtype)

    def call(self, op: Any = gated_rela, inputs: dict[str, Tensor] | None = None) -> Tensor:
        x = dict(inputs or self.inputs)
        qk = x.pop("qk")
        q, k = (qk, None) if self.side_by_side else qk.chunk(2, dim=-1)
        return op(q, k, x.pop("v"), x.pop("g", None), self.cu_seqlens, **x, **self.options)

    def gradients(self, op: Any = gated_rela) -> dict[str, Tensor]:
        y = self.call(op)
        grads = torch.autograd.grad(y, list(self.inputs.values()), self.d_y)
        return {"y": y.detach(), **dict(zip(self.inputs, grads, strict=True))}

    def state(self, requires_grad: bool = False) -> RelaState:
        """A random state after up to 5 rows of each sequence; its sums are positive, like sums of phi."""
        batch, dim = len(self.cu_seqlens) - 1, self.inputs["v"].shape[1]
        heads = self.options["num_heads"]
        kernel_size = self.inputs["conv_weight"].shape[1] if "conv_weight" in self.inputs else 1
        kv_state = torch.rand(batch, heads, dim // heads + 1, dim // heads, dtype=self.d_y.dtype)
        history = torch.randn(batch, kernel_size - 1, dim, dtype=self.d_y.dtype)
        position = torch.randint(1, 6, (batch,))
        if "rotary" in self.options:
            longest = int(self.cu_seqlens.diff().max()) + 5
            self.options["rotary"] = rotary_table(longest, dim, dtype=self.d_y.dtype)
        return RelaState(
            kv_state.requires_grad_(requires_grad), history.requires_grad_(requires_grad), position
        )

    def check(self, ratio: float) -> None:
        expected, got = self.gradients(gated_rela_reference), self.gradients()
        for name, value in expected.items():
            assert_close(name, value, got[name], ratio, scale=1.0)
