"""Cases of linear_scan, and the op in plain PyTorch on dense batches of equal lengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from python_tests.cases.case import HEADLINE_LENGTHS, Case, Operands, Random, Tensors
from recgrela.ops import linear_scan, linear_scan_reference


def by_row(x: Tensor, a: Tensor) -> Tensor:
    """h_i = a_i h_{i-1} + x_i, [B, L, C], one row after another."""
    h, out = torch.zeros_like(x[:, 0]), []
    for row, step in zip(x.unbind(1), a.expand_as(x).unbind(1), strict=True):
        h = step * h + row
        out.append(h)
    return torch.stack(out, 1)


def by_doubling(x: Tensor, a: Tensor) -> Tensor:
    """The same along dimension 1, in log2(L) steps over all rows."""
    a, offset = a.expand_as(x), 1
    while offset < x.shape[1]:
        x = torch.cat([x[:, :offset], x[:, offset:] + a[:, offset:] * x[:, :-offset]], 1)
        a = torch.cat([a[:, :offset], a[:, offset:] * a[:, :-offset]], 1)
        offset *= 2
    return x


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"by_row": by_row, "by_doubling": by_doubling}


@dataclass(frozen=True, kw_only=True)
class LinearScanCase(Case):
    """linear_scan, real or complex depending on the dtype.

    Attributes:
        per_step: whether each step has coefficients of its own, or all steps share them.
    """

    channels: int = 64
    per_step: bool = True

    op: ClassVar[str] = "linear_scan"
    function = staticmethod(linear_scan)
    definition = staticmethod(linear_scan_reference)

    @property
    def parameters(self) -> frozenset[str]:
        return frozenset() if self.per_step else frozenset({"a"})

    @property
    def forms(self) -> tuple[str, ...]:
        return tuple(FORMS)

    def options(self) -> str:
        return "per step" if self.per_step else "constant"

    def sizes(self) -> str:
        return f"C={self.channels}"

    def draw(self, random: Random) -> tuple[Tensors, Tensors, Tensors]:
        rows = (self.rows, self.channels)
        shape = rows if self.per_step else rows[1:]
        size, turn = 0.5 + 0.499 * random.uniform(*shape), random.uniform(*shape)
        if self.dtype.is_complex:
            a = torch.polar(size, 2 * math.pi * turn)
        else:
            a = torch.where(turn < 0.25, -size, size)  # both signs
        inputs = {"x": random.normal(*rows, dtype=self.dtype), "a": a.to(self.accumulate_dtype)}
        upstream = {"y": random.normal(*rows, dtype=self.dtype)}
        if self.state:
            state = (self.batch, self.channels)
            inputs["initial_state"] = random.normal(*state, dtype=self.accumulate_dtype)
            upstream["final_state"] = random.normal(*state, dtype=self.accumulate_dtype)
        return inputs, upstream, {}

    def call(self, x: Operands, op: Callable[..., Any] | None = None) -> Tensors:
        out = (op or self.function)(**x.inputs, cu_seqlens=x.cu_seqlens, return_state=self.state)
        return dict(zip(("y", "final_state"), out, strict=True)) if self.state else {"y": out}

    def form(self, name: str, t: Tensors) -> Tensor:
        """h, [B, L, C], by a form in plain PyTorch, of dense operands."""
        return FORMS[name](t["x"], t["a"])

    def exact(self, t: Tensors) -> Tensor:
        return self.form("by_doubling", t)

    @property
    def row_elements(self) -> int:
        return self.channels

    def _bytes(self, rows: int, coefficients: int) -> int:
        """Bytes of tensors like x (`rows`) and like a (`coefficients`); constant ones are not counted."""
        sizes = rows * self.dtype.itemsize + self.per_step * coefficients * self.accumulate_dtype.itemsize
        return self.rows * self.channels * sizes

    @property
    def forward_bytes(self) -> int:
        """x, h, and a."""
        return self._bytes(2, 1)

    @property
    def backward_bytes(self) -> int:
        """d_h, h, d_x, and a and d_a."""
        return self._bytes(3, 2)

    @classmethod
    def variants(cls, lengths: tuple[int, ...], dtype: torch.dtype, **options: Any) -> Iterator[Case]:
        for per_step in (True, False):
            yield cls(lengths=lengths, dtype=dtype, per_step=per_step, **options)

    @classmethod
    def small(cls, dtype: torch.dtype) -> Iterator[Case]:
        for lengths in ((1, 17, 0, 33, 5), (601, 2, 300)):
            yield cls(lengths=lengths, dtype=dtype, channels=40, per_step=not dtype.is_complex)

    @classmethod
    def headline(cls, quick: bool) -> Iterator[Case]:
        lengths = HEADLINE_LENGTHS[:256] if quick else HEADLINE_LENGTHS
        yield cls(lengths=lengths, dtype=torch.complex64, per_step=False)
        for dtype in (torch.float32, torch.bfloat16):
            yield cls(lengths=lengths, dtype=dtype)

    @classmethod
    def further(cls, quick: bool) -> Iterator[Case]:
        yield cls(lengths=(4096 if quick else 16_384,) * 8)

    @classmethod
    def cpu_sizes(cls) -> Iterator[Case]:
        lengths = (200,) * 32
        yield cls(lengths=lengths, channels=128)
        yield cls(lengths=lengths, channels=128, dtype=torch.complex64, per_step=False)
