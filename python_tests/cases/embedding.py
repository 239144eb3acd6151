"""Cases of embedding, and the op in plain PyTorch on dense batches of equal lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.cases.case import HEADLINE_LENGTHS, Case, Operands, Random, Tensors, gradients
from recgrela.ops import embedding, embedding_reference

EPS = 1e-12


@dataclass(frozen=True, kw_only=True)
class EmbeddingCase(Case):
    """embedding of items of which a few are popular, as in histories of users.

    Attributes:
        n_items: rows of the table.
        width: D.
        norm: whether LayerNorm follows.
        dropout: rate of the dropout, which the forms in plain PyTorch leave out.
        padding_idx: row of the table that gets no gradient.
    """

    n_items: int = 3417
    width: int = 64
    norm: bool = True
    dropout: float = 0.0
    padding_idx: int | None = 0

    op: ClassVar[str] = "embedding"
    function = staticmethod(embedding)
    definition = staticmethod(embedding_reference)
    compiled: ClassVar[bool] = True
    has_state: ClassVar[bool] = False

    @property
    def parameters(self) -> frozenset[str]:
        return frozenset({"table", "weight", "bias"})

    @property
    def forms(self) -> tuple[str, ...]:
        return () if self.dropout else ("functional",)

    @property
    def drops(self) -> bool:
        return self.dropout > 0

    def options(self) -> str:
        return ("norm" if self.norm else "plain") + (" dropout" if self.dropout else "")

    def sizes(self) -> str:
        return f"items={self.n_items} D={self.width}"

    def draw(self, random: Random) -> tuple[Tensors, Tensors, Tensors]:
        def normal(*shape: int) -> Tensor:
            return random.normal(*shape, dtype=self.dtype)

        inputs = {"table": normal(self.n_items, self.width)}
        if self.norm:
            inputs |= {"weight": normal(self.width), "bias": normal(self.width)}
        # The density of item i falls with the square root of i.
        items = (random.uniform(self.rows).square() * self.n_items).long().clamp(max=self.n_items - 1)
        constants = {"items": items, "seed": random.integers(0, 2**62, 1)}
        return inputs, {"y": normal(self.rows, self.width)}, constants

    def call(self, x: Operands, op: Callable[..., Any] | None = None) -> Tensors:
        seed = x.constants["seed"] if self.dropout else None
        more = {"eps": EPS, "dropout": self.dropout, "padding_idx": self.padding_idx, "seed": seed}
        return {"y": (op or self.function)(x.constants["items"], **x.inputs, **more)}

    def dense(self, x: Operands) -> Tensors:
        return x.inputs | {"items": x.constants["items"].view(-1, self.length)}

    def form(self, name: str, t: Tensors) -> Tensor:
        """y, [B, L, D]."""
        y = F.embedding(t["items"], t["table"], self.padding_idx)
        return F.layer_norm(y, y.shape[-1:], t["weight"], t["bias"], EPS) if self.norm else y

    def expected(self, x: Operands) -> Tensors:
        if self.drops:
            return self.reference(x)
        wide = x.cast(x.cu_seqlens.device, torch.float64)
        return gradients({"y": self.form("functional", self.dense(wide)).flatten(0, 1)}, wide)

    @property
    def table_bytes(self) -> int:
        return self.n_items * self.width * self.dtype.itemsize

    @property
    def forward_bytes(self) -> int:
        """Items, the table and y."""
        return self.rows * (8 + self.width * self.dtype.itemsize) + self.table_bytes

    @property
    def backward_bytes(self) -> int:
        """Items, d_y, the table and d_table."""
        return self.forward_bytes + self.table_bytes

    @classmethod
    def variants(cls, lengths: tuple[int, ...], dtype: torch.dtype, **options: Any) -> Iterator[Case]:
        for norm in (True, False):
            yield cls(lengths=lengths, dtype=dtype, n_items=50, norm=norm, **options)

    @classmethod
    def small(cls, dtype: torch.dtype) -> Iterator[Case]:
        for width in (16, 48, 80, 112, 144, 256):
            yield cls(lengths=(1, 17, 0, 33, 5), dtype=dtype, n_items=30, width=width, dropout=0.2)
        for n_items in (3, 700, 5000):
            for norm in (True, False):
                yield cls(lengths=(601, 2, 300), dtype=dtype, n_items=n_items, norm=norm, dropout=0.2)
        yield cls(lengths=(200,) * 100, dtype=dtype, n_items=300, width=32, padding_idx=None)

    @classmethod
    def headline(cls, quick: bool) -> Iterator[Case]:
        yield cls(lengths=HEADLINE_LENGTHS[:256] if quick else HEADLINE_LENGTHS)

    @classmethod
    def further(cls, quick: bool) -> Iterator[Case]:
        for lengths in ((200,) * 16, HEADLINE_LENGTHS):
            yield cls(lengths=lengths, dropout=0.2)
        if not quick:
            yield cls(lengths=HEADLINE_LENGTHS, n_items=100_000)

    @classmethod
    def cpu_sizes(cls) -> Iterator[Case]:
        yield cls(lengths=(200,) * 64)
