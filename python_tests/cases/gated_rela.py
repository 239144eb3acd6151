"""Cases of gated_rela, and the op in plain PyTorch on dense batches of equal lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.cases.case import HEADLINE_LENGTHS, Case, Operands, Random, Tensors
from python_tests.cases.causal_conv1d import conv_by_shifts, conv_by_torch
from recgrela.ops import OPS, RelaState, gated_rela, gated_rela_reference, rotary_table, rotate

EPS = 1e-6
CHUNK = 40  # rows per chunk of causal_chunked
MAX_MASKED = 2048  # benchmarks compute no L x L products of longer sequences


def _features(q: Tensor, k: Tensor, v: Tensor, rotary: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """phi and R phi of q and k, and v, split into heads: [B, H, L, d]."""
    fq, fk = F.elu(q) + 1, F.elu(k) + 1
    parts = (fq, fk, rotate(fq, rotary), rotate(fk, rotary), v)
    return tuple(x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in parts)


def _count(q: Tensor) -> Tensor:
    """The number of rows that each row attends to, [L, 1]."""
    return torch.arange(1, q.shape[1] + 1, dtype=q.dtype, device=q.device)[:, None]


def bidirectional(q: Tensor, k: Tensor, v: Tensor, rotary: Tensor, num_heads: int) -> Tensor:
    """o: [B, L, D]."""
    fq, fk, rq, rk, v = _features(q, k, v, rotary, num_heads)
    state = rk.mT @ v / q.shape[1]
    den = fq @ fk.mean(-2, keepdim=True).mT + EPS
    return (rq @ state / den).transpose(1, 2).flatten(2)


def causal_masked(q: Tensor, k: Tensor, v: Tensor, rotary: Tensor, num_heads: int) -> Tensor:
    """o: [B, L, D], by masked L x L products."""
    fq, fk, rq, rk, v = _features(q, k, v, rotary, num_heads)
    count = _count(q)
    den = (fq * fk.cumsum(-2)).sum(-1, keepdim=True) / count + EPS
    return ((rq @ rk.mT).tril() @ v / count / den).transpose(1, 2).flatten(2)


def causal_chunked(q: Tensor, k: Tensor, v: Tensor, rotary: Tensor, num_heads: int) -> Tensor:
    """o: [B, L, D], by cumulative sums of the states of chunks, and masked products inside the chunks."""
    fq, fk, rq, rk, v = _features(q, k, v, rotary, num_heads)
    n, count = q.shape[1], _count(q)
    den = (fq * fk.cumsum(-2)).sum(-1, keepdim=True) / count + EPS
    rq, rk, v = (F.pad(x, (0, 0, 0, -n % CHUNK)).unflatten(2, (-1, CHUNK)) for x in (rq, rk, v))
    state = rk.mT @ v
    num = rq @ (state.cumsum(2) - state) + (rq @ rk.mT).tril() @ v
    return (num.flatten(2, 3)[:, :, :n] / count / den).transpose(1, 2).flatten(2)


ATTENTION: dict[str, Callable[..., Tensor]] = {
    form.__name__: form for form in (bidirectional, causal_masked, causal_chunked)
}


def gated(
    attention: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    rotary: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_heads: int,
    conv: Callable[..., Tensor] = conv_by_torch,
) -> Tensor:
    """y, [B, L, D], with one form of the attention and one of the convolution."""
    return (attention(q, k, v, rotary, num_heads) + conv(v, weight, bias)) * F.silu(g)


@dataclass(frozen=True, kw_only=True)
class GatedRelaCase(Case):
    """gated_rela.

    Attributes:
        joined: q and k are side by side in one tensor, as one projection computes them.
        kernel_size: size of the convolution's kernel; 0 leaves the convolution out.
    """

    heads: int = 4
    head_dim: int = 16
    causal: bool = True
    joined: bool = False
    gate: bool = True
    rotary: bool = True
    kernel_size: int = 4

    op: ClassVar[str] = "gated_rela"
    function = staticmethod(gated_rela)
    definition = staticmethod(gated_rela_reference)
    autocast: ClassVar[bool] = True
    compiled: ClassVar[bool] = True
    term_size: ClassVar[float] = 0.3

    @property
    def parameters(self) -> frozenset[str]:
        return frozenset({"conv_weight", "conv_bias"})

    @property
    def forms(self) -> tuple[str, ...]:
        return ("causal_masked", "causal_chunked") if self.causal else ("bidirectional",)

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def mode(self) -> str:
        return "causal" if self.causal else "bidirectional"

    def options(self) -> str:
        return self.mode

    def sizes(self) -> str:
        return f"D={self.dim} H={self.heads}"

    def draw(self, random: Random) -> tuple[Tensors, Tensors, Tensors]:
        def rows(width: int = self.dim) -> Tensor:
            return random.normal(self.rows, width, dtype=self.dtype)

        inputs = {"q": rows(2 * self.dim)} if self.joined else {"q": rows(), "k": rows()}
        inputs["v"] = rows()
        if self.gate:
            inputs["g"] = rows()
        if self.kernel_size:
            inputs["conv_weight"] = random.normal(self.dim, self.kernel_size, dtype=self.accumulate_dtype)
            inputs["conv_bias"] = random.normal(self.dim, dtype=self.accumulate_dtype)
        upstream, constants, positions = {"y": rows()}, {}, max(self.lengths, default=0)
        if self.state:
            kv = (self.batch, self.heads, self.head_dim + 1, self.head_dim)
            history = (self.batch, max(self.kernel_size - 1, 0), self.dim)
            inputs["initial_kv_state"] = random.uniform(*kv).to(self.accumulate_dtype)
            inputs["initial_history"] = random.normal(*history, dtype=self.dtype)
            constants["initial_position"] = random.integers(0, 9, self.batch)
            upstream["final_kv_state"] = 0.1 * random.normal(*kv, dtype=self.accumulate_dtype)
            upstream["final_history"] = random.normal(*history, dtype=self.dtype)
            positions += 9
        if self.rotary:
            constants["rotary"] = rotary_table(
                positions, self.dim, dtype=self.accumulate_dtype, device=random.device
            )
        return inputs, upstream, constants

    def call(self, x: Operands, op: Callable[..., Any] | None = None) -> Tensors:
        t = x.inputs
        names = ("initial_kv_state", "initial_history", "initial_position")
        state = RelaState(*((t | x.constants)[name] for name in names)) if self.state else None
        out = (op or self.function)(
            t["q"],
            t.get("k"),
            t["v"],
            t.get("g"),
            x.cu_seqlens,
            num_heads=self.heads,
            causal=self.causal,
            rotary=x.constants.get("rotary"),
            conv_weight=t.get("conv_weight"),
            conv_bias=t.get("conv_bias"),
            initial_state=state,
            return_state=self.state,
        )
        if not self.state:
            return {"y": out}
        y, final = out
        return dict(zip(("y", "final_kv_state", "final_history", "final_position"), (y, *final), strict=True))

    def form(self, name: str, t: Tensors, **more: Any) -> Tensor:
        """y, [B, L, D], by a form of the attention in plain PyTorch, of dense operands."""
        q, k = t["q"].chunk(2, dim=-1) if self.joined else (t["q"], t["k"])
        rotary = t["rotary"].to(t["v"].dtype)
        rows = (q, k, t["v"], t["g"], rotary, t["conv_weight"], t["conv_bias"])
        return gated(ATTENTION[name], *rows, self.heads, **more)

    def exact(self, t: Tensors) -> Tensor:
        return self.form(self.forms[-1], t, conv=conv_by_shifts)

    @property
    def row_elements(self) -> int:
        return self.dim * max(1, self.head_dim // CHUNK)

    @property
    def forward_bytes(self) -> int:
        """q, k, v, g and y."""
        return 5 * self.rows * self.dim * self.dtype.itemsize

    @property
    def backward_bytes(self) -> int:
        """q, k, v, g, d_y, d_q, d_k, d_v and d_g."""
        return 9 * self.rows * self.dim * self.dtype.itemsize

    @classmethod
    def variants(cls, lengths: tuple[int, ...], dtype: torch.dtype, **options: Any) -> Iterator[Case]:
        yield cls(lengths=lengths, dtype=dtype, **options)
        if not options.get("state"):  # only the causal form has a state
            yield cls(lengths=lengths, dtype=dtype, causal=False, **options)

    @classmethod
    def small(cls, dtype: torch.dtype) -> Iterator[Case]:
        for causal in (True, False):
            for head_dim in OPS[cls.op].kernels["cuda"].head_dims:
                for lengths in ((1, 17, 0, 33, 5), (601, 2, 300)):
                    yield cls(
                        lengths=lengths,
                        dtype=dtype,
                        heads=1 if head_dim == 128 else 2,
                        head_dim=head_dim,
                        causal=causal,
                        joined=True,
                    )

    @classmethod
    def headline(cls, quick: bool) -> Iterator[Case]:
        lengths = HEADLINE_LENGTHS[:256] if quick else HEADLINE_LENGTHS
        for dtype in (torch.float32, torch.bfloat16):
            for causal in (False, True):
                yield cls(lengths=lengths, dtype=dtype, causal=causal, joined=True)

    @classmethod
    def further(cls, quick: bool) -> Iterator[Case]:
        long = (4096 if quick else 16_384,) * 8
        for dtype in (torch.bfloat16, torch.float32):
            for causal in (True, False):
                yield cls(lengths=long, dtype=dtype, causal=causal, joined=True)
        wide = HEADLINE_LENGTHS[: 128 if quick else 1024]
        for head_dim in (32, 64, 128):
            for dtype, causal in ((torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, True)):
                yield cls(
                    lengths=wide,
                    dtype=dtype,
                    heads=128 // head_dim,
                    head_dim=head_dim,
                    causal=causal,
                    joined=True,
                )

    @classmethod
    def cpu_sizes(cls) -> Iterator[Case]:
        for causal in (False, True):
            yield cls(lengths=(200,) * 64, causal=causal, joined=True)
