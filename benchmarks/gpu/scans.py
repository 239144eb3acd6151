"""linear_scan and selective_scan for gpu_check.py: operands, our ops, float64 expectations, bytes to move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.ops import CHECKED_SEQUENCES, DTYPES, Case, Operands
from recgrela.ops import linear_scan, selective_scan

CHUNK = 1 << 22  # states of rows in float64 at a time, of which expectations are made


def by_doubling(a: Tensor, x: Tensor) -> Tensor:
    """h_i = a_i h_{i-1} + x_i along dimension 1, in log2(L) steps over all rows."""
    offset = 1
    while offset < x.shape[1]:
        x = torch.cat([x[:, :offset], x[:, offset:] + a[:, offset:] * x[:, :-offset]], 1)
        a = torch.cat([a[:, :offset], a[:, offset:] * a[:, :-offset]], 1)
        offset *= 2
    return x


@dataclass(frozen=True)
class ScanCase(Case):
    @property
    def parameters(self) -> tuple[str, ...]:
        """Inputs that all rows share."""
        raise NotImplementedError

    @property
    def row_states(self) -> int:
        return self.dim

    def by_doubling(self, t: dict[str, Tensor]) -> Tensor:
        """The op on dense [B, L, ...] inputs."""
        raise NotImplementedError

    def expected(self, x: Operands) -> dict[str, Tensor]:
        """On equal lengths, some sequences at a time."""
        step = max(1, CHUNK // (self.length * self.row_states))
        few, kept = min(self.batch, CHECKED_SEQUENCES), {}
        sums = dict.fromkeys(set(self.parameters) & set(x.inputs), 0)
        for first in range(0, self.batch if sums else few, step):
            count = min(step, self.batch - first)
            rows = slice(first * self.length, (first + count) * self.length)
            part = Operands(
                {name: t if name in sums else t[rows] for name, t in x.inputs.items()},
                x.dy[rows],
                x.cu_seqlens,
            ).cast(x.dy.device, torch.float64)
            y = self.by_doubling(
                {n: t if n in sums else t.unflatten(0, (count, -1)) for n, t in part.inputs.items()}
            ).flatten(0, 1)
            grads = torch.autograd.grad(y, list(part.inputs.values()), part.dy)
            found = {"y": y.detach(), **dict(zip(part.inputs, grads, strict=True))}
            for name, value in found.items():
                if name in sums:
                    sums[name] = sums[name] + value
                elif first < few:
                    kept.setdefault(name, []).append(value)
        return {name: torch.cat(parts) for name, parts in kept.items()} | sums


@dataclass(frozen=True)
class LinearScanCase(ScanCase):
    """linear_scan: complex with constant coefficients (LRU), or real with those of each step."""

    complex: bool = False
    name: ClassVar[str] = "linear_scan"

    @property
    def parameters(self) -> tuple[str, ...]:
        return ("a",) if self.complex else ()

    @property
    def forward_bytes(self) -> int:
        """x and h, and the coefficients in float32."""
        size = DTYPES[self.dtype].itemsize
        return self.rows * self.dim * (4 * size if self.complex else 2 * size + max(size, 4))

    @property
    def backward_bytes(self) -> int:
        """dh, h and dx, and the coefficients and their gradients."""
        size = DTYPES[self.dtype].itemsize
        return self.rows * self.dim * (6 * size if self.complex else 3 * size + 2 * max(size, 4))

    def __str__(self) -> str:
        size = f"B={self.batch} L={self.length}" if not self.lengths else f"uneven T={self.rows}"
        kind = "complex constant" if self.complex else "real per step"
        return f"{self.name} {kind} {self.dtype} {size} D={self.dim}"

    def operands(self, device: torch.device | str, seed: int = 0) -> Operands:
        generator = torch.Generator(device).manual_seed(seed)
        dtype = DTYPES[self.dtype]

        def make(*shape: int) -> Tensor:
            draw = torch.complex64 if self.complex else torch.float32
            x = torch.randn(*shape, generator=generator, device=device, dtype=draw)
            return x.to(dtype.to_complex() if self.complex else dtype)

        a = torch.rand(
            *([self.dim] if self.complex else [self.rows, self.dim]), generator=generator, device=device
        )
        a = (0.9 + 0.099 * a).to(torch.promote_types(dtype, torch.float32))
        if self.complex:
            a = torch.polar(a, 30 * a)
        inputs = {"x": make(self.rows, self.dim).requires_grad_(), "a": a.requires_grad_()}
        return Operands(inputs, make(self.rows, self.dim), self.offsets(device))

    def ours(self, x: Operands) -> Tensor:
        return linear_scan(x.inputs["x"], x.inputs["a"], x.cu_seqlens)

    def by_doubling(self, t: dict[str, Tensor]) -> Tensor:
        return by_doubling(t["a"].expand_as(t["x"]), t["x"])


@dataclass(frozen=True)
class SelectiveScanCase(ScanCase):
    """selective_scan with softplus, skip and gate; `dim` channels."""

    states: int = 16
    name: ClassVar[str] = "selective_scan"

    @property
    def parameters(self) -> tuple[str, ...]:
        return ("A", "D", "delta_bias")

    @property
    def row_states(self) -> int:
        return self.dim * self.states

    @property
    def forward_bytes(self) -> int:
        """u, delta, z and y; B and C."""
        return self.rows * (4 * self.dim + 2 * self.states) * DTYPES[self.dtype].itemsize

    @property
    def backward_bytes(self) -> int:
        """The same with dy for y, and gradients of all but dy."""
        return self.rows * (7 * self.dim + 4 * self.states) * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        size = f"B={self.batch} L={self.length}" if not self.lengths else f"uneven T={self.rows}"
        return f"{self.name} {self.dtype} {size} D={self.dim} N={self.states}"

    def operands(self, device: torch.device | str, seed: int = 0) -> Operands:
        generator = torch.Generator(device).manual_seed(seed)
        dtype = DTYPES[self.dtype]
        wide = torch.promote_types(dtype, torch.float32)

        def make(*shape: int, to: torch.dtype = dtype) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device).to(to)

        rows = (self.rows, self.dim)
        inputs = {"u": make(*rows), "delta": make(*rows) - 3}  # steps of about 0.05, as Mamba's
        inputs["A"] = -torch.arange(1, self.states + 1, device=device, dtype=wide).repeat(self.dim, 1)
        inputs |= {"B": make(self.rows, self.states), "C": make(self.rows, self.states)}
        inputs |= {"D": make(self.dim, to=wide), "z": make(*rows), "delta_bias": make(self.dim, to=wide)}
        inputs = {name: x.requires_grad_() for name, x in inputs.items()}
        return Operands(inputs, make(*rows), self.offsets(device))

    def ours(self, x: Operands) -> Tensor:
        return selective_scan(**x.inputs, cu_seqlens=x.cu_seqlens)

    def by_doubling(self, t: dict[str, Tensor]) -> Tensor:
        step = F.softplus(t["delta"] + t["delta_bias"])
        decay = (step[..., None] * t["A"]).exp()
        h = by_doubling(decay, (step * t["u"])[..., None] * t["B"][:, :, None])
        y = torch.einsum("blin,bln->bli", h, t["C"]) + t["D"] * t["u"]
        return y * F.silu(t["z"])


def small_cases(dtypes: Sequence[str]) -> list[Case]:
    """Every dtype and number of lanes at small odd sizes, and sequences long enough to be cut."""
    odd, long = (1, 17, 0, 33, 5), (601, 2, 300)
    cases: list[Case] = []
    for dtype in dtypes:
        for lengths in (odd, long):
            cases.append(LinearScanCase(len(lengths), 0, 40, dtype, lengths))
            if dtype == "fp32":
                cases.append(LinearScanCase(len(lengths), 0, 40, dtype, lengths, complex=True))
        for states in (5, 16, 32, 64, 128, 256):
            cases.append(SelectiveScanCase(len(odd), 0, 40, dtype, odd, states=states))
        cases.append(SelectiveScanCase(len(long), 0, 40, dtype, long))
    return cases
