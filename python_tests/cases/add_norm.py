"""Cases of add_norm, and the op in plain PyTorch on dense batches of equal lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.cases.case import HEADLINE_LENGTHS, Case, Operands, Random, Tensors
from recgrela.ops import add_norm, add_norm_reference

EPS = 1e-12


@dataclass(frozen=True, kw_only=True)
class AddNormCase(Case):
    """add_norm of float32 rows and a branch.

    Attributes:
        width: D.
        post_norm: whether the residual stream is the normalized sum.
        both: whether y is the residual stream and the normalized rows side by side, or the latter alone.
        drop: rate of dropout and of DropPath, which the forms in plain PyTorch leave out.
    """

    width: int = 64
    post_norm: bool = False
    both: bool = False
    drop: float = 0.0

    op: ClassVar[str] = "add_norm"
    function = staticmethod(add_norm)
    definition = staticmethod(add_norm_reference)
    compiled: ClassVar[bool] = True
    has_state: ClassVar[bool] = False

    @property
    def parameters(self) -> frozenset[str]:
        return frozenset({"weight", "bias"})

    @property
    def forms(self) -> tuple[str, ...]:
        return () if self.drop else ("functional",)

    @property
    def drops(self) -> bool:
        return self.drop > 0

    def options(self) -> str:
        return ("post-norm" if self.post_norm else "pre-norm") + (" dropout" if self.drop else "")

    def sizes(self) -> str:
        return f"D={self.width}"

    def draw(self, random: Random) -> tuple[Tensors, Tensors, Tensors]:
        def normal(*shape: int, dtype: torch.dtype = self.accumulate_dtype) -> Tensor:
            return random.normal(*shape, dtype=dtype)

        inputs = {
            "x": normal(self.rows, self.width),
            "z": normal(self.rows, self.width, dtype=self.dtype),
            "weight": normal(self.width),
            "bias": normal(self.width),
        }
        lengths = torch.tensor(self.lengths, dtype=torch.int64, device=random.device)
        sequence = torch.repeat_interleave(lengths, output_size=self.rows)
        constants = {"sequence": sequence, "seed": random.integers(0, 2**62, 2)}
        return inputs, {"y": normal(self.rows, self.width * (2 if self.both else 1))}, constants

    def call(self, x: Operands, op: Callable[..., Any] | None = None) -> Tensors:
        more: dict[str, Any] = {"eps": EPS, "post_norm": self.post_norm}
        if self.drop:
            more |= {"dropout": self.drop, "drop_path": self.drop} | x.constants
        residual, normed = (op or self.function)(**x.inputs, **more)
        return {"y": torch.cat((residual, normed), dim=1) if self.both else normed}

    def form(self, name: str, t: Tensors) -> Tensor:
        """y, [B, L, D] or [B, L, 2 D]."""
        s = t["x"] + t["z"]
        normed = F.layer_norm(s, (self.width,), t["weight"], t["bias"], EPS)
        return torch.cat((normed if self.post_norm else s, normed), dim=-1) if self.both else normed

    def exact(self, t: Tensors) -> Tensor:
        return self.form("functional", t)

    @property
    def row_elements(self) -> int:
        return 2 * self.width

    @property
    def forward_bytes(self) -> int:
        """x, z, the residual stream, unless it is the normalized rows, and those."""
        wide, narrow = self.accumulate_dtype.itemsize, self.dtype.itemsize
        residual = 0 if self.post_norm and wide == narrow else wide
        return self.rows * self.width * (wide + 2 * narrow + residual)

    @property
    def backward_bytes(self) -> int:
        """The gradient of the normalized rows, the sum or its operands, and the operands' gradients."""
        wide, narrow = self.accumulate_dtype.itemsize, self.dtype.itemsize
        operands = wide + (narrow if self.post_norm else 0)
        gradients = wide if wide == narrow and not self.drop else wide + narrow  # else they are one tensor
        return self.rows * self.width * (narrow + operands + gradients)

    @classmethod
    def variants(cls, lengths: tuple[int, ...], dtype: torch.dtype, **options: Any) -> Iterator[Case]:
        for post_norm in (False, True):
            yield cls(lengths=lengths, dtype=dtype, post_norm=post_norm, both=True, **options)

    @classmethod
    def small(cls, dtype: torch.dtype) -> Iterator[Case]:
        for post_norm in (False, True):
            for width in (32, 48, 64, 80, 128, 176, 256):
                for lengths in ((1, 17, 0, 33, 5), (601, 2, 300)):
                    more = {"width": width, "post_norm": post_norm, "both": width != 64, "drop": 0.2}
                    yield cls(lengths=lengths, dtype=dtype, **more)

    @classmethod
    def headline(cls, quick: bool) -> Iterator[Case]:
        for dtype in (torch.float32, torch.bfloat16):
            yield cls(lengths=HEADLINE_LENGTHS[:256] if quick else HEADLINE_LENGTHS, dtype=dtype)

    @classmethod
    def further(cls, quick: bool) -> Iterator[Case]:
        lengths = HEADLINE_LENGTHS[:256] if quick else HEADLINE_LENGTHS
        yield cls(lengths=lengths, dtype=torch.bfloat16, post_norm=True)
        yield cls(lengths=lengths, dtype=torch.bfloat16, drop=0.2)
        if not quick:
            yield cls(lengths=lengths, dtype=torch.bfloat16, width=128)

    @classmethod
    def cpu_sizes(cls) -> Iterator[Case]:
        for post_norm in (False, True):
            yield cls(lengths=(200,) * 64, post_norm=post_norm)
