"""A case of an op: operands from a seed, our call, the reference, expected results, bytes to move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from python_tests.cases.compare import LABELS
from recgrela.ops import OPS

HALF_DTYPES = (torch.float16, torch.bfloat16)
REAL_DTYPES = (torch.float32, *HALF_DTYPES)
HEADLINE_LENGTHS = (200,) * 2048  # the published batch
# Expected results have the rows of this many sequences; gradients of parameters sum over all sequences.
CHECKED_SEQUENCES = 4
# Limit on the elements of the largest intermediate tensor while expected results are computed.
MAX_ELEMENTS = 1 << 22

Tensors = dict[str, Tensor]
Form = Callable[..., Tensor]
Layout = Callable[[Tensor], Tensor]


@dataclass
class Operands:
    """The operands of one call.

    Attributes:
        inputs: operands that get gradients, by the name of the op's argument.
        upstream: the gradient of each output, by the output's name.
        cu_seqlens: offsets of the sequences.
        constants: operands without gradients, by name.
    """

    inputs: Tensors
    upstream: Tensors
    cu_seqlens: Tensor
    constants: Tensors = field(default_factory=dict)

    def cast(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Operands:
        """Copies the operands to a device, as new leaves; `dtype` converts all floating-point tensors."""

        def to(x: Tensor) -> Tensor:
            if dtype is None or not (x.is_floating_point() or x.is_complex()):
                return x.detach().to(device)
            return x.detach().to(device, dtype.to_complex() if x.is_complex() else dtype)

        return Operands(
            {name: to(x).requires_grad_() for name, x in self.inputs.items()},
            {name: to(x) for name, x in self.upstream.items()},
            self.cu_seqlens.to(device),
            {name: to(x) for name, x in self.constants.items()},
        )

    def with_layout(self, layout: Layout) -> Operands:
        """Copies the operands into tensors with other strides."""
        inputs = {name: layout(x.detach()).requires_grad_() for name, x in self.inputs.items()}
        return replace(self, inputs=inputs, upstream={name: layout(x) for name, x in self.upstream.items()})


class Random:
    """Random tensors on one device from one seed."""

    def __init__(self, device: torch.device | str, seed: int) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
        kind = torch.complex64 if dtype.is_complex else torch.float32
        x = torch.randn(*shape, generator=self.generator, device=self.device, dtype=kind)
        return x.to(dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of an op: sizes, dtype and options.

    Attributes:
        lengths: rows of each sequence.
        dtype: dtype of the rows.
        offsets: dtype of cu_seqlens.
        state: whether the call begins from a state and returns one.
    """

    lengths: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    offsets: torch.dtype = torch.int64
    state: bool = False

    op: ClassVar[str]
    function: ClassVar[Callable[..., Any]]
    definition: ClassVar[Callable[..., Any]]  # the *_reference in plain PyTorch
    dtypes: ClassVar[tuple[torch.dtype, ...]]  # those of the CUDA kernels
    has_state: ClassVar[bool] = True  # whether a call can begin from a state
    autocast: ClassVar[bool] = False  # whether forms use autocast in half precision, to be accurate
    compiled: ClassVar[bool] = False  # whether benchmarks also compile the forms
    term_size: ClassVar[float] = 1.0  # size of the terms of a gradient, which can cancel

    def __init_subclass__(cls) -> None:
        cls.dtypes = OPS[cls.op].kernels["cuda"].dtypes

    @property
    def parameters(self) -> frozenset[str]:
        """Names of the operands that all rows share."""
        return frozenset()

    @property
    def forms(self) -> tuple[str, ...]:
        """Names of ways to write the op in plain PyTorch, on dense operands."""
        return ()

    @property
    def drops(self) -> bool:
        """Whether elements are dropped at random; PyTorch's dropout draws others than the op."""
        return False

    @property
    def rows(self) -> int:
        return sum(self.lengths)

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def length(self) -> int:
        """The length of every sequence."""
        (length,) = set(self.lengths)
        return length

    def rows_of(self, name: str) -> int:
        """Rows per sequence of an operand or output, for sequences of equal length."""
        return self.length

    @property
    def accumulate_dtype(self) -> torch.dtype:
        """Dtype of states, and of parameters that stay in full precision."""
        return torch.float32 if self.dtype in HALF_DTYPES else self.dtype

    def __str__(self) -> str:
        equal = len(set(self.lengths)) == 1
        sizes = f"B={self.batch} L={self.length}" if equal else f"uneven T={self.rows}"
        parts = (self.op, self.options(), LABELS[self.dtype], sizes, self.sizes())
        return " ".join(part for part in parts if part)

    def options(self) -> str:
        """The options, in words for a report."""
        return ""

    def sizes(self) -> str:
        """The sizes of a row, in words for a report."""
        raise NotImplementedError

    def draw(self, random: Random) -> tuple[Tensors, Tensors, Tensors]:
        """Draws inputs, gradients of the outputs, and constants."""
        raise NotImplementedError

    def operands(self, device: torch.device | str = "cpu", seed: int = 0) -> Operands:
        """Random operands; the same seed and device give the same operands."""
        inputs, upstream, constants = self.draw(Random(device, seed))
        offsets = torch.tensor([0, *self.lengths]).cumsum(0).to(device, self.offsets)
        leaves = {name: x.requires_grad_() for name, x in inputs.items()}
        return Operands(leaves, upstream, offsets, constants)

    def call(self, x: Operands, op: Callable[..., Any] | None = None) -> Tensors:
        """Outputs by name, y first, of our op or of another function with its signature."""
        raise NotImplementedError

    def results(self, x: Operands, op: Callable[..., Any] | None = None) -> Tensors:
        """Outputs by name, and gradients as d_<input>."""
        return gradients(self.call(x, op), x)

    def reference(self, x: Operands) -> Tensors:
        """Results of the op's *_reference in float64, on the device of `x`."""
        return self.results(x.cast(x.cu_seqlens.device, torch.float64), type(self).definition)

    def on_cpu(self, x: Operands) -> Tensors:
        """Results of our CPU kernels in float64 for the same values."""
        return self.results(x.cast("cpu", torch.float64))

    def dense(self, x: Operands) -> Tensors:
        """Operands for the forms: rows as [B, L, ...], parameters and constants unchanged."""
        rows = {
            n: t if n in self.parameters else t.unflatten(0, (-1, self.rows_of(n)))
            for n, t in x.inputs.items()
        }
        return rows | x.constants

    def form(self, name: str, t: Tensors) -> Tensor:
        """y, [B, L, ...], of dense operands, computed by one of `forms`."""
        raise NotImplementedError

    def plain(self, name: str, x: Operands, compute: Form | None = None) -> Tensor:
        """y of packed rows, computed by one of `forms`; `compute` replaces `form`, for example compiled."""
        half = self.autocast and self.dtype in HALF_DTYPES
        with torch.autocast(x.cu_seqlens.device.type, self.dtype if half else None, enabled=half):
            y = (compute or self.form)(name, self.dense(x))
        return y.to(self.dtype).flatten(0, 1)

    def exact(self, t: Tensors) -> Tensor:
        """y, [B, L, ...], of dense operands, in plain PyTorch, with memory linear in the length."""
        raise NotImplementedError

    def expected(self, x: Operands) -> Tensors:
        """Results of `exact` in float64: rows of the first sequences, and gradients of parameters.

        All sequences must have the same length and no state. They are processed a few at a time. If elements
        are dropped, these are the results of the definition instead, which draws the same elements.
        """
        if self.drops:
            return self.reference(x)
        step = max(1, MAX_ELEMENTS // (self.length * self.row_elements))
        few, kept = min(self.batch, CHECKED_SEQUENCES), {}
        sums = dict.fromkeys(sorted(self.parameters & set(x.inputs)), 0)
        for first in range(0, self.batch if sums else few, step):

            def rows(name: str, t: Tensor, first: int = first) -> Tensor:
                n = self.rows_of(name)
                return t[first * n : min(first + step, self.batch) * n]

            part = Operands(
                {name: t if name in sums else rows(name, t) for name, t in x.inputs.items()},
                {name: rows(name, t) for name, t in x.upstream.items()},
                x.cu_seqlens,
                x.constants,
            ).cast(x.cu_seqlens.device, torch.float64)
            found = gradients({"y": self.exact(self.dense(part)).flatten(0, 1)}, part)
            for name, value in found.items():
                if name.removeprefix("d_") in sums:
                    sums[name.removeprefix("d_")] += value
                elif first < few:
                    kept.setdefault(name, []).append(value)
        return {n: torch.cat(parts) for n, parts in kept.items()} | {f"d_{n}": t for n, t in sums.items()}

    @property
    def row_elements(self) -> int:
        """Elements per row of the largest intermediate tensor of `exact`."""
        raise NotImplementedError

    @property
    def forward_bytes(self) -> int:
        """Bytes that any forward must read or write."""
        raise NotImplementedError

    @property
    def backward_bytes(self) -> int:
        """Bytes that a backward must read or write if it recomputes from the inputs."""
        raise NotImplementedError

    @classmethod
    def variants(cls, lengths: tuple[int, ...], dtype: torch.dtype, **options: Any) -> Iterator[Case]:
        """A case for each mode of the op."""
        yield cls(lengths=lengths, dtype=dtype, **options)

    @classmethod
    def small(cls, dtype: torch.dtype) -> Iterator[Case]:
        """Cases for every kernel of a dtype: small odd sizes, and sequences that are cut into segments."""
        raise NotImplementedError

    @classmethod
    def headline(cls, quick: bool) -> Iterator[Case]:
        """Cases that a benchmark on a GPU measures first."""
        raise NotImplementedError

    @classmethod
    def cpu_sizes(cls) -> Iterator[Case]:
        """Cases that a benchmark on a CPU measures."""
        raise NotImplementedError

    @classmethod
    def further(cls, quick: bool) -> Iterator[Case]:
        """Cases that a benchmark on a GPU measures if there is time."""
        yield from ()


def gradients(outputs: Tensors, x: Operands) -> Tensors:
    """Detached outputs by name, and the gradient of each input as d_<input>."""
    leaves = {name: t for name, t in x.inputs.items() if t.numel()}
    names = [name for name in outputs if name in x.upstream]
    upstream = [x.upstream[name].to(outputs[name].dtype) for name in names]
    computed = [outputs[name] for name in names]
    grads = torch.autograd.grad(computed, list(leaves.values()), upstream) if leaves else ()
    named = {f"d_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {name: t.detach() for name, t in outputs.items()} | named
