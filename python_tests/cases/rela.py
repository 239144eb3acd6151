"""Cases for the CUDA ops, on a GPU or on the SIMT host, against the CPU kernels in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from python_tests.support.tensors import assert_close, cu_seqlens_of
from recgrela.ops import RelaState, gated_rela, rotary_table

UNEVEN = [1, 257, 0, 3, 64, 2, 65, 17, 16, 15]
# Of the largest value; gradients of few rows cancel, so a size is given beside them.
RATIOS = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
DTYPES = list(RATIOS)


def to(x: Any, device: str, dtype: torch.dtype) -> Any:
    """Tensors of floating point to a device and dtype; angles and sums stay as wide as kernels keep them."""
    return x.detach().to(device, dtype).requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x


class Case:
    """Operands whose values all dtypes can hold, and both sides' results."""

    def __init__(
        self,
        lengths: list[int],
        head: int = 16,
        heads: int = 2,
        *,
        causal: bool,
        dtype: torch.dtype = torch.float32,
        gate: bool = True,
        rotary: bool = True,
        taps: int = 4,
        state: bool = False,
        offsets: torch.dtype = torch.int64,
    ) -> None:
        def make(*shape: int) -> Tensor:
            return torch.randn(*shape).to(dtype).double().requires_grad_()

        rows, dim, batch = sum(lengths), head * heads, len(lengths)
        self.dtype, self.cu_seqlens = dtype, cu_seqlens_of(lengths, offsets)
        self.inputs = {"q": make(rows, dim), "k": make(rows, dim), "v": make(rows, dim)}
        self.inputs |= {"g": make(rows, dim)} if gate else {}
        self.inputs |= {"conv_weight": make(dim, taps), "conv_bias": make(dim)} if taps else {}
        self.options = {"num_heads": heads, "causal": causal}
        longest = max(lengths, default=0) + 9
        self.rotary = rotary_table(longest, dim, dtype=torch.float64).float().double() if rotary else None
        self.state = None
        if state:
            sums = torch.rand(batch, heads, head + 1, head).double().requires_grad_()
            values = make(batch, max(taps - 1, 0), dim)
            self.state = RelaState(sums, values, torch.randint(0, 9, (batch,)))
        self.dy = make(rows, dim).detach()

    def results(self, device: str, dtype: torch.dtype, layout: Any = lambda x: x) -> dict[str, Tensor]:
        """y, the final state and every gradient, on a device in a dtype."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        x = {name: layout(to(t, device, dtype)).detach().requires_grad_() for name, t in self.inputs.items()}
        rotary = None if self.rotary is None else self.rotary.to(device, wide)
        state = None
        if self.state:
            sums, values, position = self.state
            state = RelaState(to(sums, device, wide), to(values, device, dtype), position.to(device))
        out = gated_rela(
            x["q"],
            x["k"],
            x["v"],
            x.get("g"),
            self.cu_seqlens.to(device),
            rotary=rotary,
            conv_weight=x.get("conv_weight"),
            conv_bias=x.get("conv_bias"),
            initial_state=state,
            return_state=state is not None,
            **self.options,
        )
        y, final = out if state else (out, ())
        loss = (y * layout(to(self.dy, device, dtype))).sum()
        wanted = dict(x)
        if state:
            loss = loss.double() + final[0].double().square().sum() * 1e-3 + final[1].double().sum()
            wanted |= {"sums": state.sums} | ({"values": state.values} if state.values.numel() else {})
        grads = torch.autograd.grad(loss, list(wanted.values()))
        named = {"y": y, **{f"final {i}": t for i, t in enumerate(final)}}
        named |= {f"d {name}": g for name, g in zip(wanted, grads, strict=True)}
        return {name: t.detach() for name, t in named.items()}

    def check(self, expected: dict[str, Tensor], got: dict[str, Tensor]) -> None:
        for name, value in expected.items():
            assert_close(name, value, got[name].cpu(), RATIOS[self.dtype], scale=0.3)
