"""Cases of linear_cross_entropy, and the op in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.cases.case import HALF_DTYPES, Case, Form, Operands, Random, Tensors, gradients
from recgrela.ops import linear_cross_entropy, linear_cross_entropy_reference


@dataclass(frozen=True, kw_only=True)
class LinearCrossEntropyCase(Case):
    """linear_cross_entropy; its loss has the shape [1].

    Attributes:
        n_items: rows of the table.
        width: D.
        bias: whether items have a bias.
        label_smoothing: probability that is spread over all items.
    """

    n_items: int = 3417
    width: int = 64
    bias: bool = False
    label_smoothing: float = 0.0

    op: ClassVar[str] = "linear_cross_entropy"
    function = staticmethod(linear_cross_entropy)
    definition = staticmethod(linear_cross_entropy_reference)
    has_state: ClassVar[bool] = False
    compiled: ClassVar[bool] = True

    @property
    def parameters(self) -> frozenset[str]:
        return frozenset({"weight", "bias"})

    def rows_of(self, name: str) -> int:
        return 0 if name == "y" else self.length

    @property
    def term_size(self) -> float:  # type: ignore[override]
        """The size of a row's gradient; the loss is larger."""
        return 1 / max(1, self.rows)

    @property
    def forms(self) -> tuple[str, ...]:
        """PyTorch's own operator by chunks exists from torch 2.13 on, without label smoothing."""
        has_chunks = hasattr(torch.nn, "LinearCrossEntropyOptions") and not self.label_smoothing
        return ("functional", "chunked") if has_chunks else ("functional",)

    def options(self) -> str:
        return " ".join(
            part
            for part, used in (
                ("bias", self.bias),
                (f"smoothing {self.label_smoothing}", self.label_smoothing),
            )
            if used
        )

    def sizes(self) -> str:
        return f"items={self.n_items} D={self.width}"

    def draw(self, random: Random) -> tuple[Tensors, Tensors, Tensors]:
        def parameter(*shape: int) -> Tensor:
            return random.normal(*shape, dtype=self.accumulate_dtype)

        inputs = {
            "hidden": random.normal(self.rows, self.width, dtype=self.dtype),
            "weight": parameter(self.n_items, self.width).div_(self.width**0.5),
        }
        if self.bias:
            inputs["bias"] = parameter(self.n_items)
        return inputs, {"y": parameter(1)}, {"target": random.integers(0, self.n_items, self.rows)}

    def call(self, x: Operands, op: Callable[..., Any] | None = None) -> Tensors:
        loss = (op or self.function)(**x.inputs, **x.constants, label_smoothing=self.label_smoothing)
        return {"y": loss[None]}

    def dense(self, x: Operands) -> Tensors:
        return x.inputs | x.constants

    def form(self, name: str, t: Tensors) -> Tensor:
        """The loss, [1], with scores in the dtype of the rows, as under autocast."""
        hidden = t["hidden"]
        weight, bias = t["weight"].to(hidden.dtype), t["bias"].to(hidden.dtype) if self.bias else None
        if name == "chunked":
            options = torch.nn.LinearCrossEntropyOptions()  # type: ignore[attr-defined]
            return F.linear_cross_entropy(  # type: ignore[attr-defined]
                hidden,
                weight,
                t["target"],
                linear_bias=bias,
                options=options,
            )[None]
        scores = F.linear(hidden, weight, bias)
        scores = scores.float() if self.dtype in HALF_DTYPES else scores
        return F.cross_entropy(scores, t["target"], label_smoothing=self.label_smoothing)[None]

    def plain(self, name: str, x: Operands, compute: Form | None = None) -> Tensor:
        return (compute or self.form)(name, self.dense(x))

    def expected(self, x: Operands) -> Tensors:
        """Results in float64, with the scores of all rows in memory only if there are few."""
        wide = x.cast(x.cu_seqlens.device, torch.float64)
        inputs, target = wide.inputs, wide.constants["target"]
        bias = (inputs["bias"],) if self.bias else ()
        loss = torch.zeros((), dtype=torch.float64, device=target.device)
        sums = {name: torch.zeros_like(t) for name, t in inputs.items()}
        step = max(1, (1 << 26) // self.n_items)
        for first in range(0, self.rows, step):
            rows = slice(first, first + step)
            part = {
                "y": linear_cross_entropy_reference(
                    inputs["hidden"][rows],
                    inputs["weight"],
                    target[rows],
                    *bias,
                    label_smoothing=self.label_smoothing,
                )[None]
            }
            share = min(step, self.rows - first) / self.rows
            for name, t in gradients(part, wide).items():
                if name == "y":
                    loss += share * t[0]
                else:
                    sums[name.removeprefix("d_")] += share * t
        return {"y": loss[None]} | {f"d_{name}": t for name, t in sums.items()}

    @property
    def operand_bytes(self) -> int:
        rows = self.rows * self.width * self.dtype.itemsize
        return rows + self.n_items * self.width * self.accumulate_dtype.itemsize

    @property
    def forward_bytes(self) -> int:
        """Rows and table, and their gradients, which the forward computes."""
        return 2 * self.operand_bytes + 8 * self.rows

    @property
    def backward_bytes(self) -> int:
        """The gradients, multiplied by d_loss."""
        return 2 * self.operand_bytes

    @classmethod
    def variants(cls, lengths: tuple[int, ...], dtype: torch.dtype, **options: Any) -> Iterator[Case]:
        """Without and with bias and label smoothing; none without rows, which the op does not take."""
        for bias, label_smoothing in ((False, 0.0), (True, 0.2)) if sum(lengths) else ():
            yield cls(
                lengths=lengths,
                dtype=dtype,
                n_items=70,
                bias=bias,
                label_smoothing=label_smoothing,
                **options,
            )

    @classmethod
    def small(cls, dtype: torch.dtype) -> Iterator[Case]:
        for width in (32, 48, 64, 128, 256):
            for n_items in (7, 100):
                yield cls(lengths=(70, 1), dtype=dtype, width=width, n_items=n_items, bias=True)
        for rows, n_items in ((1, 300), (1300, 65), (300, 3417)):
            yield cls(lengths=(rows,), dtype=dtype, n_items=n_items, label_smoothing=0.1)

    @classmethod
    def headline(cls, quick: bool) -> Iterator[Case]:
        for dtype in (torch.bfloat16, torch.float32):
            yield cls(lengths=(8192 if quick else 65536,), dtype=dtype)

    @classmethod
    def further(cls, quick: bool) -> Iterator[Case]:
        for dtype in (torch.bfloat16, torch.float32):
            yield cls(lengths=(2048,), dtype=dtype)
            if not quick:
                yield cls(lengths=(6400,), dtype=dtype, n_items=200_000)
        yield cls(lengths=(8192,), dtype=torch.bfloat16, bias=True, label_smoothing=0.1)

    @classmethod
    def cpu_sizes(cls) -> Iterator[Case]:
        yield cls(lengths=(2048,))
