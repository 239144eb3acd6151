"""Cases of gated_rela_last, and the op in plain PyTorch on dense batches of equal lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.cases.case import HEADLINE_LENGTHS, Case, Operands, Random, Tensors
from python_tests.cases.gated_rela import EPS
from recgrela.ops import OPS, gated_rela_last, gated_rela_last_reference, rotary_table, rotate


@dataclass(frozen=True, kw_only=True)
class GatedRelaLastCase(Case):
    """gated_rela_last of the last rows.

    Attributes:
        kernel_size: size of the convolution's kernel; 0 leaves the convolution out.
    """

    heads: int = 4
    head_dim: int = 16
    gate: bool = True
    rotary: bool = True
    kernel_size: int = 4

    op: ClassVar[str] = "gated_rela_last"
    function = staticmethod(gated_rela_last)
    definition = staticmethod(gated_rela_last_reference)
    autocast: ClassVar[bool] = True
    compiled: ClassVar[bool] = True
    term_size: ClassVar[float] = 0.3

    @property
    def parameters(self) -> frozenset[str]:
        return frozenset({"conv_weight", "conv_bias"})

    @property
    def forms(self) -> tuple[str, ...]:
        return ("by_state", "by_weights")

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    def sizes(self) -> str:
        return f"D={self.dim} H={self.heads}"

    def rows_of(self, name: str) -> int:
        return 1 if name in ("q", "g", "y") else self.length

    def draw(self, random: Random) -> tuple[Tensors, Tensors, Tensors]:
        def rows(count: int) -> Tensor:
            return random.normal(count, self.dim, dtype=self.dtype)

        inputs = {"q": rows(self.batch), "k": rows(self.rows), "v": rows(self.rows)}
        if self.gate:
            inputs["g"] = rows(self.batch)
        if self.kernel_size:
            inputs["conv_weight"] = random.normal(self.dim, self.kernel_size, dtype=self.accumulate_dtype)
            inputs["conv_bias"] = random.normal(self.dim, dtype=self.accumulate_dtype)
        ends = torch.tensor(self.lengths, dtype=torch.int64).cumsum(0)
        constants = {"rows": (ends - 1).to(random.device)}
        if self.rotary:
            constants["rotary"] = rotary_table(
                max(self.lengths, default=0), self.dim, dtype=self.accumulate_dtype, device=random.device
            )
        return inputs, {"y": rows(self.batch)}, constants

    def call(self, x: Operands, op: Callable[..., Any] | None = None) -> Tensors:
        t = x.inputs
        y = (op or self.function)(
            t["q"],
            t["k"],
            t["v"],
            t.get("g"),
            x.cu_seqlens,
            x.constants["rows"],
            num_heads=self.heads,
            rotary=x.constants.get("rotary"),
            conv_weight=t.get("conv_weight"),
            conv_bias=t.get("conv_bias"),
        )
        return {"y": y}

    def form(self, name: str, t: Tensors) -> Tensor:
        """y, [B, 1, D], of dense operands: by the state of keys by values, or by the weight of each key."""
        k, v, rotary = t["k"], t["v"], t["rotary"].to(t["v"].dtype)
        fq, fk = F.elu(t["q"]) + 1, F.elu(k) + 1  # [B, 1, D], [B, L, D]
        rq, rk = rotate(fq, rotary[-1:]), rotate(fk, rotary)

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, L, d]

        den = heads(fq) @ heads(fk).mean(-2, keepdim=True).mT + EPS
        if name == "by_state":
            num = heads(rq) @ (heads(rk).mT @ heads(v) / self.length)
        else:
            num = heads(rq) @ heads(rk).mT @ heads(v) / self.length
        o = (num / den).transpose(1, 2).flatten(2)
        history = F.pad(v, (0, 0, self.kernel_size - 1, 0))[:, -self.kernel_size :]
        conv = (history * t["conv_weight"].mT).sum(1, keepdim=True) + t["conv_bias"]
        return (o + F.silu(conv)) * F.silu(t["g"])

    def exact(self, t: Tensors) -> Tensor:
        return self.form("by_weights", t)

    @property
    def row_elements(self) -> int:
        return self.dim

    @property
    def forward_bytes(self) -> int:
        """k and v; q, g and y of one row a sequence."""
        return (2 * self.rows + 3 * self.batch) * self.dim * self.dtype.itemsize

    @property
    def backward_bytes(self) -> int:
        """k, v, d_k and d_v; q, g, d_y, d_q and d_g of one row a sequence."""
        return (4 * self.rows + 5 * self.batch) * self.dim * self.dtype.itemsize

    @classmethod
    def variants(cls, lengths: tuple[int, ...], dtype: torch.dtype, **options: Any) -> Iterator[Case]:
        if not options.get("state"):  # there is no state
            yield cls(lengths=lengths, dtype=dtype, **options)

    @classmethod
    def small(cls, dtype: torch.dtype) -> Iterator[Case]:
        for head_dim in OPS[cls.op].kernels["cuda"].head_dims:
            for lengths in ((1, 17, 0, 33, 5), (601, 2, 300)):
                heads = 1 if head_dim == 128 else 3
                yield cls(lengths=lengths, dtype=dtype, heads=heads, head_dim=head_dim)

    @classmethod
    def headline(cls, quick: bool) -> Iterator[Case]:
        for dtype in (torch.float32, torch.bfloat16):
            yield cls(lengths=HEADLINE_LENGTHS[:256] if quick else HEADLINE_LENGTHS, dtype=dtype)

    @classmethod
    def further(cls, quick: bool) -> Iterator[Case]:
        for dtype in (torch.bfloat16, torch.float32):
            yield cls(lengths=(4096 if quick else 16_384,) * 8, dtype=dtype)

    @classmethod
    def cpu_sizes(cls) -> Iterator[Case]:
        yield cls(lengths=(200,) * 64)
