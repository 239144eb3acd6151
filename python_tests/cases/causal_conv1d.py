"""Cases of causal_conv1d, and the op in plain PyTorch on dense batches of equal lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.cases.case import HEADLINE_LENGTHS, Case, Operands, Random, Tensors
from recgrela.ops import causal_conv1d, causal_conv1d_reference


def conv_by_torch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU of the causal convolution of [B, L, C], by F.conv1d."""
    y = F.conv1d(x.mT, weight[:, None], bias, padding=weight.shape[1] - 1, groups=x.shape[-1])
    return F.silu(y[..., : x.shape[1]]).mT


def conv_by_shifts(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same as a sum of shifted rows."""
    kernel_size = weight.shape[1]
    padded = F.pad(x, (0, 0, kernel_size - 1, 0))
    shifted = (padded[:, i : i + x.shape[1]] * weight[:, i] for i in range(kernel_size))
    return F.silu(sum(shifted, start=bias))


FORMS: dict[str, Callable[..., Tensor]] = {"conv1d": conv_by_torch, "shifts": conv_by_shifts}


@dataclass(frozen=True, kw_only=True)
class CausalConv1dCase(Case):
    """causal_conv1d with a bias and SiLU."""

    channels: int = 64
    kernel_size: int = 4

    op: ClassVar[str] = "causal_conv1d"
    function = staticmethod(causal_conv1d)
    definition = staticmethod(causal_conv1d_reference)
    compiled: ClassVar[bool] = True
    term_size: ClassVar[float] = 0.3

    @property
    def parameters(self) -> frozenset[str]:
        return frozenset({"weight", "bias"})

    @property
    def forms(self) -> tuple[str, ...]:
        return tuple(FORMS)

    def sizes(self) -> str:
        return f"C={self.channels} K={self.kernel_size}"

    def draw(self, random: Random) -> tuple[Tensors, Tensors, Tensors]:
        def normal(*shape: int) -> Tensor:
            return random.normal(*shape, dtype=self.dtype)

        inputs = {
            "x": normal(self.rows, self.channels),
            "weight": random.normal(self.channels, self.kernel_size, dtype=self.accumulate_dtype),
            "bias": random.normal(self.channels, dtype=self.accumulate_dtype),
        }
        upstream = {"y": normal(self.rows, self.channels)}
        if self.state:
            history = (self.batch, self.kernel_size - 1, self.channels)
            inputs["initial_history"] = normal(*history)
            upstream["final_history"] = normal(*history)
        return inputs, upstream, {}

    def call(self, x: Operands, op: Callable[..., Any] | None = None) -> Tensors:
        more = {"return_final_history": True} if self.state else {}
        out = (op or self.function)(**x.inputs, cu_seqlens=x.cu_seqlens, **more)
        return dict(zip(("y", "final_history"), out, strict=True)) if self.state else {"y": out}

    def form(self, name: str, t: Tensors) -> Tensor:
        """y, [B, L, C], by a form in plain PyTorch, of dense operands."""
        x = t["x"]
        return FORMS[name](x, t["weight"].to(x.dtype), t["bias"].to(x.dtype))

    def exact(self, t: Tensors) -> Tensor:
        return self.form("shifts", t)

    @property
    def row_elements(self) -> int:
        return self.channels

    @property
    def forward_bytes(self) -> int:
        """x and y."""
        return 2 * self.rows * self.channels * self.dtype.itemsize

    @property
    def backward_bytes(self) -> int:
        """x, d_y and d_x."""
        return 3 * self.rows * self.channels * self.dtype.itemsize

    @classmethod
    def small(cls, dtype: torch.dtype) -> Iterator[Case]:
        for kernel_size in (2, 3, 4):
            for lengths in ((1, 17, 0, 33, 5), (601, 2, 300)):
                yield cls(lengths=lengths, dtype=dtype, channels=40, kernel_size=kernel_size)

    @classmethod
    def headline(cls, quick: bool) -> Iterator[Case]:
        for dtype in (torch.float32, torch.bfloat16):
            yield cls(lengths=HEADLINE_LENGTHS[:256] if quick else HEADLINE_LENGTHS, dtype=dtype)

    @classmethod
    def cpu_sizes(cls) -> Iterator[Case]:
        yield cls(lengths=(200,) * 64)
