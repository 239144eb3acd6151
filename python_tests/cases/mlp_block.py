"""Cases of mlp_block, and the op in plain PyTorch on dense batches of equal lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.cases.case import HEADLINE_LENGTHS, Case, Operands, Random, Tensors
from recgrela.ops import mlp_block, mlp_block_reference
from recgrela.ops.mlp import ACTIVATIONS

EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class MLPBlockCase(Case):
    """mlp_block of float32 rows and a branch.

    Attributes:
        width: D.
        hidden: F.
        activation: the activation of the hidden layer.
        drop: rate of both dropouts and of DropPath.
    """

    width: int = 64
    hidden: int = 256
    activation: str = "gelu"
    drop: float = 0.0

    op: ClassVar[str] = "mlp_block"
    function = staticmethod(mlp_block)
    definition = staticmethod(mlp_block_reference)
    has_state: ClassVar[bool] = False
    autocast: ClassVar[bool] = True
    compiled: ClassVar[bool] = True

    @property
    def parameters(self) -> frozenset[str]:
        return frozenset({"norm_weight", "norm_bias", "w1", "b1", "w2", "b2"})

    @property
    def forms(self) -> tuple[str, ...]:
        return ("functional",)

    @property
    def drops(self) -> bool:
        return self.drop > 0

    def options(self) -> str:
        return self.activation + (" dropout" if self.drop else "")

    def sizes(self) -> str:
        return f"D={self.width} F={self.hidden}"

    def draw(self, random: Random) -> tuple[Tensors, Tensors, Tensors]:
        def normal(*shape: int, dtype: torch.dtype = self.accumulate_dtype, scale: float = 1.0) -> Tensor:
            return random.normal(*shape, dtype=dtype) * scale

        d, f = self.width, self.hidden
        inputs = {
            "x": normal(self.rows, d),
            "z": normal(self.rows, d, dtype=self.dtype),
            "norm_weight": normal(d),
            "norm_bias": normal(d),
            "w1": normal(f, d, scale=d**-0.5),
            "b1": normal(f, scale=0.3),
            "w2": normal(d, f, scale=f**-0.5),
            "b2": normal(d, scale=0.3),
        }
        lengths = torch.tensor(self.lengths, dtype=torch.int64, device=random.device)
        sequence = torch.repeat_interleave(lengths, output_size=self.rows)
        constants = {"sequence": sequence, "seed": random.integers(0, 2**62, 3)}
        return inputs, {"y": normal(self.rows, d)}, constants

    def call(self, x: Operands, op: Callable[..., Any] | None = None) -> Tensors:
        more: dict[str, Any] = {"eps": EPS, "activation": self.activation}
        if self.drop:
            more |= {"dropout": self.drop, "drop_path": self.drop} | x.constants
        return {"y": (op or self.function)(**x.inputs, **more)}

    def form(self, name: str, t: Tensors) -> Tensor:
        """y, [B, L, D], with PyTorch's own dropout and DropPath."""
        z = t["z"]
        if self.drop:
            z = F.dropout(z.new_ones(len(z), 1, 1), self.drop) * z
        s = t["x"] + z
        normed = F.layer_norm(s, (self.width,), t["norm_weight"], t["norm_bias"], EPS)
        h = F.dropout(ACTIVATIONS[self.activation](F.linear(normed, t["w1"], t["b1"])), self.drop)
        return s + F.dropout(F.linear(h, t["w2"], t["b2"]), self.drop)

    def exact(self, t: Tensors) -> Tensor:
        return self.form("functional", t)

    @property
    def row_elements(self) -> int:
        return self.hidden

    @property
    def forward_bytes(self) -> int:
        """x, z, their sum and y."""
        return self.rows * self.width * (3 * self.accumulate_dtype.itemsize + self.dtype.itemsize)

    @property
    def backward_bytes(self) -> int:
        """The sum, d_y, d_x and d_z, unless that equals d_x."""
        wide, narrow = self.accumulate_dtype.itemsize, self.dtype.itemsize
        d_z = 0 if wide == narrow and not self.drop else narrow
        return self.rows * self.width * (3 * wide + d_z)

    @classmethod
    def variants(cls, lengths: tuple[int, ...], dtype: torch.dtype, **options: Any) -> Iterator[Case]:
        for activation in ("gelu", "silu"):
            sizes = {"width": 48, "hidden": 40}
            yield cls(lengths=lengths, dtype=dtype, activation=activation, **sizes, **options)

    @classmethod
    def small(cls, dtype: torch.dtype) -> Iterator[Case]:
        for width, hidden in ((32, 37), (48, 128), (64, 256), (64, 250)):
            for drop in (0.0, 0.2):
                sizes = {"width": width, "hidden": hidden, "activation": "silu" if hidden == 37 else "gelu"}
                yield cls(lengths=(601, 0, 2), dtype=dtype, **sizes, drop=drop)

    @classmethod
    def headline(cls, quick: bool) -> Iterator[Case]:
        for dtype in (torch.float32, torch.bfloat16):
            yield cls(lengths=HEADLINE_LENGTHS[:256] if quick else HEADLINE_LENGTHS, dtype=dtype)

    @classmethod
    def further(cls, quick: bool) -> Iterator[Case]:
        lengths = HEADLINE_LENGTHS[:256] if quick else HEADLINE_LENGTHS
        yield cls(lengths=lengths, dtype=torch.bfloat16, drop=0.1)
        if not quick:
            yield cls(lengths=lengths, dtype=torch.bfloat16, hidden=512)

    @classmethod
    def cpu_sizes(cls) -> Iterator[Case]:
        yield cls(lengths=(200,) * 64)
