"""Cases for the scans on CUDA, on a GPU or on the SIMT host, against the CPU kernels in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from python_tests.support.tensors import assert_close, cu_seqlens_of
from recgrela.ops import linear_scan, selective_scan

# Of the largest value.
RATIOS = {torch.float32: 2e-5, torch.complex64: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
LINEAR_DTYPES = list(RATIOS)
SELECTIVE_DTYPES = [dtype for dtype in RATIOS if not dtype.is_complex]


class ScanCase:
    """Operands whose values all dtypes can hold, and both sides' results.

    Attributes:
        op: what is called with `inputs` and `options`; it returns rows and the states behind them.
        kinds: the dtype of each of `inputs` on CUDA.
        grads: of the rows and of the states.
    """

    op: Any

    def __init__(self, lengths: list[int], dtype: torch.dtype, offsets: torch.dtype = torch.int64) -> None:
        self.dtype, self.narrow = dtype, dtype if dtype.is_complex else torch.float32
        self.wide = torch.complex128 if dtype.is_complex else torch.float64
        self.cu_seqlens = cu_seqlens_of(lengths, offsets)
        self.inputs: dict[str, Tensor] = {}
        self.kinds: dict[str, torch.dtype] = {}
        self.options: dict[str, Any] = {}
        self.grads: tuple[Tensor, Tensor]

    def draw(self, *shape: int, of_rows: bool = True) -> Tensor:
        return torch.randn(*shape, dtype=self.wide).to(self.dtype if of_rows else self.narrow).to(self.wide)

    def add(self, name: str, x: Tensor, of_rows: bool = False) -> None:
        self.kinds[name] = self.dtype if of_rows else self.narrow
        self.inputs[name] = x.to(self.kinds[name]).to(self.wide)

    def results(self, device: str, *, wide: bool = False, layout: Any = lambda x: x) -> dict[str, Tensor]:
        """Rows, final states and every gradient; `wide` in float64."""
        x = {
            name: layout(t.to(device, self.wide if wide else self.kinds[name])).detach().requires_grad_()
            for name, t in self.inputs.items()
        }
        y, state = type(self).op(
            **x, cu_seqlens=self.cu_seqlens.to(device), return_state=True, **self.options
        )
        grads = [layout(self.grads[0].to(y)), self.grads[1].to(state)]
        found = torch.autograd.grad([y, state], list(x.values()), grads)
        named = {f"d {name}": grad for name, grad in zip(x, found, strict=True)}
        return {"y": y.detach(), "state": state.detach(), **named}

    def check(self, expected: dict[str, Tensor], got: dict[str, Tensor]) -> None:
        for name, value in expected.items():
            kind = self.kinds.get(name.removeprefix("d "), self.dtype if name == "y" else self.narrow)
            assert got[name].dtype == kind, name
            pair = (torch.view_as_real(t) if t.is_complex() else t for t in (value, got[name].cpu()))
            assert_close(name, *pair, RATIOS[self.dtype], scale=1.0)


class LinearCase(ScanCase):
    op = staticmethod(linear_scan)

    def __init__(
        self, lengths: list[int], channels: int, dtype: torch.dtype, *, per_step: bool, **more: Any
    ) -> None:
        super().__init__(lengths, dtype, **more)
        rows = sum(lengths)
        a = self.draw(*([rows] if per_step else []), channels)
        self.add("x", self.draw(rows, channels), of_rows=True)
        self.add("a", a / (a.abs() / 0.95).clamp(min=1))
        self.add("initial_state", self.draw(len(lengths), channels, of_rows=False))
        self.grads = (self.draw(rows, channels), self.draw(len(lengths), channels, of_rows=False))


class SelectiveCase(ScanCase):
    op = staticmethod(selective_scan)

    def __init__(
        self,
        lengths: list[int],
        channels: int,
        states: int,
        dtype: torch.dtype,
        *,
        without: tuple[str, ...] = (),
        softplus: bool = True,
        **more: Any,
    ) -> None:
        super().__init__(lengths, dtype, **more)
        rows, batch = sum(lengths), len(lengths)
        self.options = {"delta_softplus": softplus}
        delta = self.draw(rows, channels)
        for name, x in (
            ("u", self.draw(rows, channels)),
            ("delta", delta if softplus else delta.abs()),
            ("B", self.draw(rows, states)),
            ("C", self.draw(rows, states)),
            ("z", self.draw(rows, channels)),
        ):
            if name not in without:
                self.add(name, x, of_rows=True)
        for name, shape in (
            ("A", (channels, states)),
            ("D", (channels,)),
            ("delta_bias", (channels,)),
            ("initial_state", (batch, channels, states)),
        ):
            if name not in without:
                x = self.draw(*shape, of_rows=False)
                self.add(name, -x.abs() if name == "A" else x)
        self.grads = (self.draw(rows, channels), self.draw(batch, channels, states, of_rows=False))
