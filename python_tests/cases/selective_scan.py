"""Cases of selective_scan, and the op in plain PyTorch on dense batches of equal lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.cases.case import HEADLINE_LENGTHS, Case, Operands, Random, Tensors
from python_tests.cases.linear_scan import by_doubling as scan_by_doubling
from recgrela.ops import selective_scan, selective_scan_reference

ROWS = ("u", "delta", "B", "C", "z")


def _output(h_c: Tensor, t: Tensors) -> Tensor:
    """y of the products of states and C, [B, L, I]."""
    return (h_c + t["D"] * t["u"]) * F.silu(t["z"])


def by_row(t: Tensors) -> Tensor:
    """y, [B, L, I]; the decay and input of a row are computed when the loop reaches it."""
    delta = F.softplus(t["delta"] + t["delta_bias"])
    h, out = t["u"].new_zeros(len(delta), *t["A"].shape), []
    rows = (x.unbind(1) for x in (delta, delta * t["u"], t["B"], t["C"]))
    for d, x, b, c in zip(*rows, strict=True):
        h = (d[..., None] * t["A"]).exp() * h + x[..., None] * b[:, None]
        out.append((h @ c[..., None]).squeeze(-1))
    return _output(torch.stack(out, 1), t)


def by_row_precomputed(t: Tensors) -> Tensor:
    """The same, with the decays and inputs of all rows, [B, L, I, N], computed first."""
    delta = F.softplus(t["delta"] + t["delta_bias"])
    decay = (delta[..., None] * t["A"]).exp()
    delta_u_b = (delta * t["u"])[..., None] * t["B"][:, :, None]
    h, out = t["u"].new_zeros(len(delta), *t["A"].shape), []
    for e, x, c in zip(decay.unbind(1), delta_u_b.unbind(1), t["C"].unbind(1), strict=True):
        h = e * h + x
        out.append((h @ c[..., None]).squeeze(-1))
    return _output(torch.stack(out, 1), t)


def by_doubling(t: Tensors) -> Tensor:
    """The same in log2(L) steps over all rows; stores all states."""
    delta = F.softplus(t["delta"] + t["delta_bias"])
    decay = (delta[..., None] * t["A"]).exp()
    h = scan_by_doubling((delta * t["u"])[..., None] * t["B"][:, :, None], decay)
    return _output(torch.einsum("blin,bln->bli", h, t["C"]), t)


FORMS: dict[str, Callable[[Tensors], Tensor]] = {
    "by_row": by_row,
    "by_row_precomputed": by_row_precomputed,
}


@dataclass(frozen=True, kw_only=True)
class SelectiveScanCase(Case):
    """selective_scan.

    Attributes:
        without: optional operands that are left out.
        softplus: steps are softplus(delta + delta_bias). Otherwise delta and delta_bias are positive, because
            negative steps let states grow without bound.
    """

    channels: int = 128
    num_states: int = 16
    without: tuple[str, ...] = ()
    softplus: bool = True

    op: ClassVar[str] = "selective_scan"
    function = staticmethod(selective_scan)
    definition = staticmethod(selective_scan_reference)

    @property
    def parameters(self) -> frozenset[str]:
        return frozenset({"A", "D", "delta_bias"})

    @property
    def forms(self) -> tuple[str, ...]:
        return tuple(FORMS)

    def sizes(self) -> str:
        return f"C={self.channels} N={self.num_states}"

    def draw(self, random: Random) -> tuple[Tensors, Tensors, Tensors]:
        rows, states = (self.rows, self.channels), (self.rows, self.num_states)
        shapes = {"u": rows, "delta": rows, "B": states, "C": states, "z": rows}
        shapes |= {"A": (self.channels, self.num_states), "D": rows[1:], "delta_bias": rows[1:]}
        inputs = {
            name: random.normal(*shape, dtype=self.dtype if name in ROWS else self.accumulate_dtype)
            for name, shape in shapes.items()
            if name not in self.without
        }
        inputs["A"] = -inputs["A"].abs() - 0.1
        if self.softplus:
            inputs["delta"] -= 2  # steps of about 0.1
        else:
            inputs |= {name: inputs[name].abs() for name in ("delta", "delta_bias") if name in inputs}
        upstream = {"y": random.normal(*rows, dtype=self.dtype)}
        if self.state:
            state = (self.batch, self.channels, self.num_states)
            inputs["initial_state"] = random.normal(*state, dtype=self.accumulate_dtype)
            upstream["final_state"] = random.normal(*state, dtype=self.accumulate_dtype)
        return inputs, upstream, {}

    def call(self, x: Operands, op: Callable[..., Any] | None = None) -> Tensors:
        absent = dict.fromkeys(self.without)
        out = (op or self.function)(
            **absent,
            **x.inputs,
            cu_seqlens=x.cu_seqlens,
            delta_softplus=self.softplus,
            return_state=self.state,
        )
        return dict(zip(("y", "final_state"), out, strict=True)) if self.state else {"y": out}

    def form(self, name: str, t: Tensors) -> Tensor:
        """y, [B, L, I], by a form in plain PyTorch, of dense operands; in float32 for half precision."""
        return FORMS[name]({name: x.to(self.accumulate_dtype) for name, x in t.items()})

    def exact(self, t: Tensors) -> Tensor:
        return by_doubling(t)

    @property
    def row_elements(self) -> int:
        return self.channels * self.num_states

    @property
    def forward_bytes(self) -> int:
        """u, delta, z and y; B and C."""
        return self.rows * (4 * self.channels + 2 * self.num_states) * self.dtype.itemsize

    @property
    def backward_bytes(self) -> int:
        """u, delta, z, B, C and d_y; the gradients of the first five."""
        return self.rows * (7 * self.channels + 4 * self.num_states) * self.dtype.itemsize

    @classmethod
    def small(cls, dtype: torch.dtype) -> Iterator[Case]:
        for num_states in (5, 16, 32, 64, 128, 256):
            yield cls(lengths=(1, 17, 0, 33, 5), dtype=dtype, channels=40, num_states=num_states)
        yield cls(lengths=(601, 2, 300), dtype=dtype, channels=40)

    @classmethod
    def headline(cls, quick: bool) -> Iterator[Case]:
        lengths = HEADLINE_LENGTHS[:256] if quick else HEADLINE_LENGTHS
        for dtype, num_states in ((torch.float32, 16), (torch.bfloat16, 16), (torch.bfloat16, 32)):
            yield cls(lengths=lengths, dtype=dtype, num_states=num_states)

    @classmethod
    def further(cls, quick: bool) -> Iterator[Case]:
        yield cls(lengths=(4096,) * 8)

    @classmethod
    def cpu_sizes(cls) -> Iterator[Case]:
        yield cls(lengths=(200,) * 32, num_states=32)
