"""The cases that gpu_check.py runs: operands on any device, our ops, float64 expectations, bytes to move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import eager
from recgrela.ops import causal_conv1d, gated_rela, rotary_table

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
# Most allowed of |error| / |expected| by norm, and of the largest error / largest expected value.
TOLERANCES = {"fp64": (1e-11, 1e-10), "fp32": (5e-5, 5e-4), "fp16": (3e-3, 1.5e-2), "bf16": (1.5e-2, 5e-2)}
# Others may use TF32 or keep sums in half precision; beyond these their speed means nothing.
PEER_TOLERANCES = {"fp64": (1e-9, 1e-8), "fp32": (1e-2, 5e-2), "fp16": (5e-2, 2e-1), "bf16": (1e-1, 3e-1)}
HEAD_WIDTHS = (8, 16, 32, 64, 128)
CHECKED_SEQUENCES = 4  # of which expectations are made; parameters' gradients are checked over all


@dataclass
class Operands:
    """Of one call: `inputs` get gradients, `dy` is the output's."""

    inputs: dict[str, Tensor]
    dy: Tensor
    cu_seqlens: Tensor
    rotary: Tensor | None = None
    rotary_low: Tensor | None = None  # in the operands' dtype, for eager PyTorch

    def cast(self, device: torch.device | str, dtype: torch.dtype) -> Operands:
        """A copy elsewhere, as leaves."""

        def to(x: Tensor) -> Tensor:
            return x.detach().to(device, dtype.to_complex() if x.is_complex() else dtype)

        return Operands(
            {name: to(x).requires_grad_() for name, x in self.inputs.items()},
            to(self.dy),
            self.cu_seqlens.to(device),
            None if self.rotary is None else to(self.rotary),
        )


@dataclass(frozen=True)
class Case:
    """Sizes of a call on `batch` sequences of `length`, or on uneven `lengths`; inputs are [rows, ...]."""

    batch: int
    length: int
    dim: int
    dtype: str
    lengths: tuple[int, ...] = ()
    name: ClassVar[str] = ""
    forward_tensors: ClassVar[int] = 0  # [T, D] tensors that must be read or written once
    backward_tensors: ClassVar[int] = 0

    @property
    def rows(self) -> int:
        return sum(self.lengths) if self.lengths else self.batch * self.length

    @property
    def forward_bytes(self) -> int:
        """The floor: bytes that any forward must move."""
        return self.forward_tensors * self.rows * self.dim * DTYPES[self.dtype].itemsize

    @property
    def backward_bytes(self) -> int:
        """The floor of a backward that recomputes."""
        return self.backward_tensors * self.rows * self.dim * DTYPES[self.dtype].itemsize

    def offsets(self, device: torch.device | str) -> Tensor:
        lengths = torch.tensor(self.lengths or (self.length,) * self.batch)
        return F.pad(lengths.cumsum(0), (1, 0)).to(device)

    def operands(self, device: torch.device | str, seed: int = 0) -> Operands:
        raise NotImplementedError

    def ours(self, x: Operands) -> Tensor:
        raise NotImplementedError

    def expected(self, x: Operands) -> dict[str, Tensor]:
        """In float64 by another way: y and row gradients of the first sequences, parameters' of all."""
        raise NotImplementedError


@dataclass(frozen=True)
class RelaCase(Case):
    """gated_rela: q and k from one projection, gate, rotary, convolution of 4 taps."""

    heads: int = 4
    causal: bool = True
    name: ClassVar[str] = "gated_rela"
    forward_tensors: ClassVar[int] = 5  # q, k, v, g, y
    backward_tensors: ClassVar[int] = 9  # q, k, v, g, dy, dq, dk, dv, dg

    @property
    def mode(self) -> str:
        return "causal" if self.causal else "bidirectional"

    def __str__(self) -> str:
        size = f"B={self.batch} L={self.length}" if not self.lengths else f"uneven T={self.rows}"
        return f"{self.name} {self.mode} {self.dtype} {size} D={self.dim} H={self.heads}"

    def operands(self, device: torch.device | str, seed: int = 0) -> Operands:
        generator = torch.Generator(device).manual_seed(seed)
        dtype = DTYPES[self.dtype]

        def make(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device).to(dtype)

        inputs = {"qk": make(self.rows, 2 * self.dim), "v": make(self.rows, self.dim)}
        inputs |= {"g": make(self.rows, self.dim), "weight": make(self.dim, 4), "bias": make(self.dim)}
        # The kernels take the table in float32 for every narrower dtype.
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        table = rotary_table(max(self.lengths, default=0) or self.length, self.dim, dtype=wide, device=device)
        return Operands(
            {name: x.requires_grad_() for name, x in inputs.items()},
            make(self.rows, self.dim),
            self.offsets(device),
            table,
            table.to(dtype),
        )

    def ours(self, x: Operands) -> Tensor:
        t = x.inputs
        return gated_rela(
            t["qk"],
            None,
            t["v"],
            t["g"],
            x.cu_seqlens,
            num_heads=self.heads,
            causal=self.causal,
            rotary=x.rotary,
            conv_weight=t["weight"],
            conv_bias=t["bias"],
        )

    def expected(self, x: Operands) -> dict[str, Tensor]:
        """By eager.py's linear forms, on equal lengths."""
        few = min(self.batch, CHECKED_SEQUENCES)
        part = slice_rows(x, few * self.length).cast(x.dy.device, torch.float64)
        dense = {n: part.inputs[n].unflatten(0, (few, -1)) for n in ("qk", "v", "g")}
        form = eager.causal_chunked if self.causal else eager.bidirectional
        q, k = dense["qk"].chunk(2, dim=-1)
        assert part.rotary is not None
        y = eager.gated_rela(
            form,
            q,
            k,
            dense["v"],
            dense["g"],
            part.rotary,
            part.inputs["weight"],
            part.inputs["bias"],
            self.heads,
        ).flatten(0, 1)
        names = ["qk", "v", "g"]
        grads = torch.autograd.grad(y, [part.inputs[n] for n in names], part.dy)
        found = {"y": y.detach(), **dict(zip(names, grads, strict=True))}
        gate = F.silu(x.inputs["g"].detach().double())
        upstream = gate * x.dy.double()
        return found | tap_gradients(self, x.inputs["v"], x.inputs["weight"], x.inputs["bias"], upstream)


@dataclass(frozen=True)
class ConvCase(Case):
    """causal_conv1d with bias and SiLU."""

    taps: int = 4
    name: ClassVar[str] = "causal_conv1d"
    forward_tensors: ClassVar[int] = 2  # x, y
    backward_tensors: ClassVar[int] = 3  # x, dy, dx

    def __str__(self) -> str:
        size = f"B={self.batch} L={self.length}" if not self.lengths else f"uneven T={self.rows}"
        return f"{self.name} {self.dtype} {size} D={self.dim} K={self.taps}"

    def operands(self, device: torch.device | str, seed: int = 0) -> Operands:
        generator = torch.Generator(device).manual_seed(seed)

        def make(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device).to(DTYPES[self.dtype])

        inputs = {"v": make(self.rows, self.dim), "weight": make(self.dim, self.taps), "bias": make(self.dim)}
        inputs = {name: x.requires_grad_() for name, x in inputs.items()}
        return Operands(inputs, make(self.rows, self.dim), self.offsets(device))

    def ours(self, x: Operands) -> Tensor:
        return causal_conv1d(x.inputs["v"], x.inputs["weight"], x.inputs["bias"], x.cu_seqlens)

    def expected(self, x: Operands) -> dict[str, Tensor]:
        few = min(self.batch, CHECKED_SEQUENCES)
        part = slice_rows(x, few * self.length).cast(x.dy.device, torch.float64)
        v = part.inputs["v"]
        pre = shifted_conv(v.unflatten(0, (few, -1)), part.inputs["weight"], part.inputs["bias"])
        y = F.silu(pre).flatten(0, 1)
        (dv,) = torch.autograd.grad(y, v, part.dy)
        found = {"y": y.detach(), "v": dv}
        return found | tap_gradients(self, x.inputs["v"], x.inputs["weight"], x.inputs["bias"], x.dy.double())


def slice_rows(x: Operands, rows: int) -> Operands:
    """The first rows; parameters and tables whole."""
    whole = ("weight", "bias")
    inputs = {name: t if name in whole else t[:rows] for name, t in x.inputs.items()}
    return replace(x, inputs=inputs, dy=x.dy[:rows])


def shifted_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The causal convolution of [B, L, C] as a sum of shifted rows."""
    width = weight.shape[1]
    padded = F.pad(x, (0, 0, width - 1, 0))
    return sum((padded[:, w : w + x.shape[1]] * weight[:, w] for w in range(width)), start=bias)


def tap_gradients(case: Case, v: Tensor, weight: Tensor, bias: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """Gradients of SiLU(conv(v)) for taps and bias in float64 over all rows, a few sequences at a time."""
    w, b = (t.detach().double().requires_grad_() for t in (weight, bias))
    sums = [torch.zeros_like(w), torch.zeros_like(b)]
    for first in range(0, case.batch, 256):
        part = slice(first * case.length, min(first + 256, case.batch) * case.length)
        rows = v[part].detach().double().unflatten(0, (-1, case.length))
        y = F.silu(shifted_conv(rows, w, b)).flatten(0, 1)
        for total, grad in zip(sums, torch.autograd.grad(y, [w, b], upstream[part]), strict=True):
            total += grad
    return {"weight": sums[0], "bias": sums[1]}


def results(y: Tensor, x: Operands) -> dict[str, Tensor]:
    """y and the gradients by name."""
    grads = torch.autograd.grad(y, list(x.inputs.values()), x.dy)
    return {"y": y.detach(), **dict(zip(x.inputs, grads, strict=True))}


def errors_of(expected: dict[str, Tensor], got: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """By name: |error| / |expected|, and the largest error / largest expected; of the rows expected."""
    errors = {}
    for name, want in expected.items():
        have = got[name][: len(want)].to(want.device, want.dtype)
        difference = have - want
        norm = (difference.norm() / want.norm()).item()
        errors[name] = (norm, (difference.abs().max() / want.abs().max()).item())
    return errors


def fault_of(errors: dict[str, tuple[float, float]], tolerance: tuple[float, float]) -> str:
    """What is beyond the tolerance, "" if nothing; NaN is."""
    return ", ".join(
        f"{name} off by {norm:.1e} (norm), {most:.1e} (largest)"
        for name, (norm, most) in errors.items()
        if not (norm <= tolerance[0] and most <= tolerance[1])
    )


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names whose bits are not the same."""
    return [name for name, x in first.items() if not torch.equal(x, second[name])]


def small_cases(dtypes: Sequence[str]) -> list[Case]:
    """Every dtype, mode and head width at small odd sizes, and sequences long enough to be cut."""
    odd, long = (1, 17, 0, 33, 5), (601, 2, 300)
    cases: list[Case] = []
    for dtype in dtypes:
        for causal in (True, False):
            for width in HEAD_WIDTHS:
                heads = 1 if width == 128 else 2
                for lengths in (odd, long):
                    size = (len(lengths), 0, heads * width)
                    cases.append(RelaCase(*size, dtype, lengths, heads=heads, causal=causal))
        for taps in (2, 3, 4):
            cases += [ConvCase(len(lengths), 0, 40, dtype, lengths, taps=taps) for lengths in (odd, long)]
    return cases


def compare_with_cpu(case: Case, device: torch.device | str) -> dict[str, tuple[float, float]]:
    """Errors of our op on a device against our CPU kernels in float64, on the same rounded operands."""
    x = case.operands(device)
    got = results(case.ours(x), x)
    wide = x.cast("cpu", torch.float64)
    return errors_of(results(case.ours(wide), wide), {name: t.cpu() for name, t in got.items()})
