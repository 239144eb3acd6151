"""Cases of linear, and the op in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.cases.case import HEADLINE_LENGTHS, Case, Operands, Random, Tensors
from recgrela.ops import linear, linear_reference


@dataclass(frozen=True, kw_only=True)
class LinearCase(Case):
    """linear; the outputs of two layers are compared side by side.

    Attributes:
        width: I.
        outputs: O.
        outputs2: P; 0: no second layer.
        bias: whether the layers have a bias.
    """

    width: int = 64
    outputs: int = 64
    outputs2: int = 0
    bias: bool = True

    op: ClassVar[str] = "linear"
    function = staticmethod(linear)
    definition = staticmethod(linear_reference)
    has_state: ClassVar[bool] = False
    autocast: ClassVar[bool] = True
    compiled: ClassVar[bool] = True

    @property
    def parameters(self) -> frozenset[str]:
        return frozenset({"weight", "bias", "weight2", "bias2"})

    @property
    def forms(self) -> tuple[str, ...]:
        return ("functional",)

    def options(self) -> str:
        return "" if self.bias else "no bias"

    def sizes(self) -> str:
        return f"I={self.width} O={self.outputs}" + (f"+{self.outputs2}" if self.outputs2 else "")

    def draw(self, random: Random) -> tuple[Tensors, Tensors, Tensors]:
        def layer(number: str, outputs: int) -> Tensors:
            weight = random.normal(outputs, self.width, dtype=self.accumulate_dtype).div_(self.width**0.5)
            bias = {f"bias{number}": random.normal(outputs, dtype=self.accumulate_dtype)} if self.bias else {}
            return {f"weight{number}": weight} | bias

        inputs = {"x": random.normal(self.rows, self.width, dtype=self.dtype)} | layer("", self.outputs)
        if self.outputs2:
            inputs |= layer("2", self.outputs2)
        return inputs, {"y": random.normal(self.rows, self.outputs + self.outputs2, dtype=self.dtype)}, {}

    def call(self, x: Operands, op: Callable[..., Any] | None = None) -> Tensors:
        out = (op or self.function)(**x.inputs)
        return {"y": torch.cat(out, dim=1) if self.outputs2 else out}

    def form(self, name: str, t: Tensors) -> Tensor:
        """y, [B, L, O + P]."""
        y = F.linear(t["x"], t["weight"], t.get("bias"))
        if not self.outputs2:
            return y
        return torch.cat((y, F.linear(t["x"], t["weight2"], t.get("bias2"))), dim=-1)

    def exact(self, t: Tensors) -> Tensor:
        return self.form("functional", t)

    @property
    def row_elements(self) -> int:
        return self.outputs + self.outputs2

    @property
    def forward_bytes(self) -> int:
        """x and y."""
        return self.rows * (self.width + self.row_elements) * self.dtype.itemsize

    @property
    def backward_bytes(self) -> int:
        """x, d_y and d_x."""
        return self.rows * (2 * self.width + self.row_elements) * self.dtype.itemsize

    @classmethod
    def variants(cls, lengths: tuple[int, ...], dtype: torch.dtype, **options: Any) -> Iterator[Case]:
        yield cls(lengths=lengths, dtype=dtype, **options)
        yield cls(lengths=lengths, dtype=dtype, outputs2=32, bias=False, **options)

    @classmethod
    def small(cls, dtype: torch.dtype) -> Iterator[Case]:
        for width, outputs, outputs2 in ((64, 64, 0), (16, 48, 64), (128, 384, 0), (80, 256, 0)):
            for lengths in ((1, 17, 0, 33, 5), (601, 2, 300)):
                yield cls(lengths=lengths, dtype=dtype, width=width, outputs=outputs, outputs2=outputs2)

    @classmethod
    def headline(cls, quick: bool) -> Iterator[Case]:
        lengths = HEADLINE_LENGTHS[:256] if quick else HEADLINE_LENGTHS
        for dtype in (torch.float32, torch.bfloat16):
            yield cls(lengths=lengths, dtype=dtype)

    @classmethod
    def further(cls, quick: bool) -> Iterator[Case]:
        lengths = HEADLINE_LENGTHS[:256] if quick else HEADLINE_LENGTHS
        for width, outputs, outputs2 in ((64, 192, 0), (64, 128, 64), (64, 256, 0), (128, 384, 0)):
            for dtype in (torch.float32, torch.bfloat16):
                yield cls(lengths=lengths, dtype=dtype, width=width, outputs=outputs, outputs2=outputs2)

    @classmethod
    def cpu_sizes(cls) -> Iterator[Case]:
        yield cls(lengths=(200,) * 64)
