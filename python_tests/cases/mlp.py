"""Cases of mlp, and the op in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.cases.case import HEADLINE_LENGTHS, Case, Operands, Random, Tensors
from recgrela.ops import mlp, mlp_reference
from recgrela.ops.mlp import ACTIVATIONS


@dataclass(frozen=True, kw_only=True)
class MLPCase(Case):
    """mlp with weights of float32, or of float64 on the CPU."""

    features: int = 64
    hidden: int = 256
    out: int = 0  # 0: as many as `features`
    activation: str = "gelu"
    dropout: float = 0.0

    op: ClassVar[str] = "mlp"
    function = staticmethod(mlp)
    definition = staticmethod(mlp_reference)
    has_state: ClassVar[bool] = False
    autocast: ClassVar[bool] = True
    compiled: ClassVar[bool] = True

    @property
    def parameters(self) -> frozenset[str]:
        return frozenset({"w1", "b1", "w2", "b2"})

    @property
    def forms(self) -> tuple[str, ...]:
        return ("linear layers",)

    @property
    def out_features(self) -> int:
        return self.out or self.features

    @property
    def drops(self) -> bool:
        return self.dropout > 0

    def options(self) -> str:
        return f"{self.activation}{f' dropout {self.dropout}' if self.dropout else ''}"

    def sizes(self) -> str:
        return f"{self.features}-{self.hidden}-{self.out_features}"

    def draw(self, random: Random) -> tuple[Tensors, Tensors, Tensors]:
        def weight(*shape: int, scale: float = 0.3) -> Tensor:
            return random.normal(*shape, dtype=torch.float32).mul_(scale).to(self.accumulate_dtype)

        i, f, o = self.features, self.hidden, self.out_features
        inputs = {
            "x": random.normal(self.rows, i, dtype=self.dtype),
            # rounded, so that hidden values near 0 have the sign of the reference's
            "w1": weight(f, i, scale=i**-0.5).to(self.dtype).to(self.accumulate_dtype),
            "b1": weight(f),
            "w2": weight(o, f, scale=f**-0.5),
            "b2": weight(o),
        }
        upstream = {"y": random.normal(self.rows, o, dtype=self.dtype)}
        return inputs, upstream, {"seed": random.integers(0, 2**62, 2)}

    def call(self, x: Operands, op: Callable[..., Any] | None = None) -> Tensors:
        seed = x.constants["seed"] if self.dropout else None
        options = {"activation": self.activation, "dropout": self.dropout, "seed": seed}
        return {"y": (op or self.function)(**x.inputs, **options)}

    def form(self, name: str, t: Tensors) -> Tensor:
        """y, [B, L, O], by PyTorch's linear layers and its own dropout."""
        h = F.dropout(ACTIVATIONS[self.activation](F.linear(t["x"], t["w1"], t["b1"])), self.dropout)
        return F.dropout(F.linear(h, t["w2"], t["b2"]), self.dropout)

    def exact(self, t: Tensors) -> Tensor:
        return self.form("linear layers", t)

    @property
    def row_elements(self) -> int:
        return self.hidden

    @property
    def forward_bytes(self) -> int:
        """x and y."""
        return self.rows * (self.features + self.out_features) * self.dtype.itemsize

    @property
    def backward_bytes(self) -> int:
        """x, d_y and d_x."""
        return self.rows * (2 * self.features + self.out_features) * self.dtype.itemsize

    @classmethod
    def variants(cls, lengths: tuple[int, ...], dtype: torch.dtype, **options: Any) -> Iterator[Case]:
        for activation in ("gelu", "silu"):
            sizes = {"features": 48, "hidden": 40, "out": 64}
            yield cls(lengths=lengths, dtype=dtype, activation=activation, **sizes, **options)

    @classmethod
    def small(cls, dtype: torch.dtype) -> Iterator[Case]:
        for features, hidden in ((32, 37), (64, 256), (64, 544), (128, 144)):
            for activation in ("gelu", "silu"):
                sizes = {"features": features, "hidden": hidden, "activation": activation}
                yield cls(lengths=(601, 2), dtype=dtype, **sizes, dropout=0.2)

    @classmethod
    def headline(cls, quick: bool) -> Iterator[Case]:
        for dtype in (torch.float32, torch.bfloat16):
            yield cls(lengths=HEADLINE_LENGTHS[:256] if quick else HEADLINE_LENGTHS, dtype=dtype)

    @classmethod
    def further(cls, quick: bool) -> Iterator[Case]:
        lengths = HEADLINE_LENGTHS[: 128 if quick else 512]
        for dtype in (torch.float32, torch.bfloat16):
            yield cls(lengths=lengths, dtype=dtype, features=128, hidden=512)
        yield cls(lengths=lengths, dtype=torch.bfloat16, features=256, hidden=1024)

    @classmethod
    def cpu_sizes(cls) -> Iterator[Case]:
        yield cls(lengths=(200,) * 64)
