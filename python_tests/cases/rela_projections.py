"""Cases of rela_projections, and the op in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.cases.case import HALF_DTYPES, HEADLINE_LENGTHS, Case, Operands, Random, Tensors
from recgrela.ops import rela_projections, rela_projections_reference

EPS = 1e-12


@dataclass(frozen=True, kw_only=True)
class RelaProjectionsCase(Case):
    """rela_projections of float32 rows, under autocast if the outputs are half precision.

    The outputs are compared side by side.

    Attributes:
        width: D.
        outputs: N; None: 2 D.
        gate: whether there is a gate.
        bias: whether the layers have biases.
    """

    width: int = 64
    outputs: int | None = None
    gate: bool = True
    bias: bool = True

    op: ClassVar[str] = "rela_projections"
    function = staticmethod(rela_projections)
    definition = staticmethod(rela_projections_reference)
    has_state: ClassVar[bool] = False
    autocast: ClassVar[bool] = True
    compiled: ClassVar[bool] = True

    @property
    def num_outputs(self) -> int:
        return 2 * self.width if self.outputs is None else self.outputs

    @property
    def parameters(self) -> frozenset[str]:
        layers = (f"{layer}_{kind}" for layer in ("norm", "in", "gate", "qk") for kind in ("weight", "bias"))
        return frozenset(layers)

    @property
    def forms(self) -> tuple[str, ...]:
        return ("functional",)

    def options(self) -> str:
        return ("" if self.gate else "no gate ") + ("" if self.bias else "no bias")

    def sizes(self) -> str:
        return f"D={self.width} N={self.num_outputs}"

    def draw(self, random: Random) -> tuple[Tensors, Tensors, Tensors]:
        def normal(*shape: int, dtype: torch.dtype = self.accumulate_dtype) -> Tensor:
            return random.normal(*shape, dtype=dtype)

        inputs = {
            "x": normal(self.rows, self.width),
            "norm_weight": normal(self.width),
            "norm_bias": normal(self.width),
        }
        layers = {"in": self.width, "gate": self.width, "qk": self.num_outputs}
        for name, outputs in layers.items():
            if name != "gate" or self.gate:
                inputs[f"{name}_weight"] = normal(outputs, self.width).div_(self.width**0.5)
                if self.bias:
                    inputs[f"{name}_bias"] = normal(outputs)
        return inputs, {"y": normal(self.rows, self.row_elements, dtype=self.dtype)}, {}

    def call(self, x: Operands, op: Callable[..., Any] | None = None) -> Tensors:
        half = self.dtype in HALF_DTYPES and x.inputs["x"].dtype == torch.float32
        absent = dict.fromkeys(("in_bias", "gate_weight", "gate_bias", "qk_bias"))
        with torch.autocast(x.cu_seqlens.device.type, self.dtype if half else None, enabled=half):
            residual, *outputs = (op or self.function)(**absent | x.inputs, eps=EPS)
        return {
            "y": torch.cat([residual.to(outputs[0].dtype), *(y for y in outputs if y is not None)], dim=1)
        }

    def form(self, name: str, t: Tensors) -> Tensor:
        """y, [B, L, 2 D + N] or [B, L, 3 D + N]."""
        u = F.layer_norm(t["x"], (self.width,), t["norm_weight"], t["norm_bias"], EPS)
        v = F.linear(u, t["in_weight"], t.get("in_bias"))
        gate = [F.linear(u, t["gate_weight"], t.get("gate_bias"))] if self.gate else []
        qk = F.linear(v, t["qk_weight"], t.get("qk_bias"))
        return torch.cat([t["x"].to(v.dtype), v, *gate, qk], dim=-1)

    def exact(self, t: Tensors) -> Tensor:
        return self.form("functional", t)

    @property
    def row_elements(self) -> int:
        return self.width * (3 if self.gate else 2) + self.num_outputs

    @property
    def forward_bytes(self) -> int:
        """x, v, gate and qk."""
        outputs = self.row_elements - self.width
        return self.rows * (self.width * self.accumulate_dtype.itemsize + outputs * self.dtype.itemsize)

    @property
    def backward_bytes(self) -> int:
        """x, v, the gradients of the outputs and of the residual stream, and d_x."""
        narrow = self.row_elements  # v, and the gradients of v, gate and qk
        return self.rows * (3 * self.width * self.accumulate_dtype.itemsize + narrow * self.dtype.itemsize)

    @classmethod
    def variants(cls, lengths: tuple[int, ...], dtype: torch.dtype, **options: Any) -> Iterator[Case]:
        yield cls(lengths=lengths, dtype=dtype, **options)
        yield cls(lengths=lengths, dtype=dtype, outputs=64, gate=False, bias=False, **options)

    @classmethod
    def small(cls, dtype: torch.dtype) -> Iterator[Case]:
        for width, outputs, gate in ((64, None, True), (64, 64, False), (48, None, True), (32, 32, True)):
            for lengths in ((1, 17, 0, 33, 5), (601, 2, 300)):
                yield cls(lengths=lengths, dtype=dtype, width=width, outputs=outputs, gate=gate)

    @classmethod
    def headline(cls, quick: bool) -> Iterator[Case]:
        yield cls(lengths=HEADLINE_LENGTHS[:256] if quick else HEADLINE_LENGTHS, dtype=torch.bfloat16)

    @classmethod
    def further(cls, quick: bool) -> Iterator[Case]:
        lengths = HEADLINE_LENGTHS[:256] if quick else HEADLINE_LENGTHS
        yield cls(lengths=lengths, dtype=torch.float16)
        yield cls(lengths=lengths, dtype=torch.bfloat16, outputs=64, gate=False)
        yield cls(lengths=lengths, dtype=torch.bfloat16, width=48)

    @classmethod
    def cpu_sizes(cls) -> Iterator[Case]:
        yield cls(lengths=(200,) * 64)
