"""What gpu_check.py measures our ops against: eager PyTorch, torch.compile, and packages where installed."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import eager
import torch
import torch.nn.functional as F
from gpu_ops import (
    DTYPES,
    Case,
    ConvCase,
    Operands,
    RelaCase,
    shifted_conv,
)
from torch import Tensor

from recgrela.ops import rotate

NOT_INSTALLED = "not installed"
LONGEST_MASKED = 2048  # beyond it nobody would make L x L products
EPS = 1e-6

Call = Callable[[Operands], Tensor]


@dataclass(frozen=True)
class Peer:
    """A way to compute the same: `call`, or why there is none."""

    name: str
    call: Call | None
    note: str = ""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError in the main thread after so many seconds."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def describe(error: BaseException) -> str:
    """An error as a line of a report."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def load(module: str, attribute: str) -> tuple[Any, str]:
    """An attribute of a package, or None and why."""
    try:
        return getattr(importlib.import_module(module), attribute), ""
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0] == module.partition(".")[0]
        return None, NOT_INSTALLED if missing else describe(error)
    except Exception as error:  # a package built for another torch raises anything on import
        return None, f"cannot be imported: {describe(error)}"


def dense(case: Case, x: Tensor) -> Tensor:
    return x.unflatten(0, (case.batch, case.length))


def eager_rela(case: RelaCase, form: Callable[..., Tensor], op: Callable[..., Tensor]) -> Call:
    """eager.py's op; in half precision under autocast, since sums of 200 half numbers are wrong."""
    dtype = DTYPES[case.dtype]

    def call(x: Operands) -> Tensor:
        t = {name: dense(case, x.inputs[name]) for name in ("qk", "v", "g")}
        q, k = t["qk"].chunk(2, dim=-1)
        device = q.device
        with torch.autocast(device.type, dtype, enabled=dtype.itemsize == 2):
            y = op(form, q, k, t["v"], t["g"], x.rotary_low, x.inputs["weight"], x.inputs["bias"], case.heads)
        return y.to(dtype).flatten(0, 1)

    return call


def conv_by_torch(v: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU of the causal convolution of [B, L, C] by F.conv1d."""
    width = weight.shape[1]
    y = F.conv1d(v.mT, weight[:, None], bias, padding=width - 1, groups=v.shape[-1])
    return F.silu(y[..., : v.shape[1]]).mT


def conv_by_shifts(v: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same as a sum of shifted rows."""
    return F.silu(shifted_conv(v, weight, bias))


def package_conv() -> tuple[Callable[..., Tensor] | None, str]:
    """SiLU of the causal convolution of [B, L, C] by the package causal_conv1d."""
    fn, note = load("causal_conv1d", "causal_conv1d_fn")
    if fn is None:
        return None, note
    return lambda v, weight, bias: fn(v.mT, weight, bias, activation="silu").mT, ""


def conv_call(case: ConvCase, conv: Callable[..., Tensor]) -> Call:
    def call(x: Operands) -> Tensor:
        y = conv(dense(case, x.inputs["v"]), x.inputs["weight"], x.inputs["bias"])
        return y.flatten(0, 1)

    return call


def package_rela(case: RelaCase, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Call:
    """`product` (causal sums of q k' v, [B, L, H, d]) with features, rotary, normaliser, conv and gate."""
    conv = package_conv()[0] or conv_by_torch
    dtype = DTYPES[case.dtype]

    def call(x: Operands) -> Tensor:
        t = {name: dense(case, x.inputs[name]) for name in ("qk", "v", "g")}
        fq, fk = (F.elu(part) + 1 for part in t["qk"].chunk(2, dim=-1))
        assert x.rotary_low is not None
        heads = (fq, fk, rotate(fq, x.rotary_low), rotate(fk, x.rotary_low), t["v"])
        fq, fk, rq, rk, v = (part.unflatten(-1, (case.heads, -1)) for part in heads)
        count = torch.arange(1, case.length + 1, dtype=torch.float32, device=v.device)[:, None, None]
        den = (fq * fk.cumsum(1, dtype=torch.float32)).sum(-1, keepdim=True) / count + EPS
        o = (product(rq, rk, v) / count / den).flatten(-2)
        local = conv(t["v"], x.inputs["weight"], x.inputs["bias"])
        return ((o + local) * F.silu(t["g"])).to(dtype).flatten(0, 1)

    return call


def fla_peer(case: RelaCase) -> Peer:
    """flash-linear-attention."""
    conv = "causal_conv1d" if package_conv()[0] else "F.conv1d"
    attention, note = load("fla.ops.linear_attn", "chunk_linear_attn")
    if attention is None:
        return Peer("fla", None, note)
    if not case.causal:
        return Peer("fla", None, "causal only")

    def product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, scale=1.0, normalize=False)[0]

    return Peer(f"fla + {conv}", package_rela(case, product))


def fast_transformers_peer(case: RelaCase) -> Peer:
    """fast-transformers' causal product."""
    name = "fast-transformers"
    attention, note = load("fast_transformers.causal_product", "causal_dot_product")
    if attention is None:
        return Peer(name, None, note)
    if not case.causal or case.dtype != "fp32":
        return Peer(name, None, "causal float32 only")

    def product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(*(x.transpose(1, 2).contiguous() for x in (q, k, v))).transpose(1, 2)

    return Peer(name, package_rela(case, product))


def eager_peers(case: Case) -> list[Peer]:
    """The natural forms in plain PyTorch."""
    if isinstance(case, ConvCase):
        forms = {"eager conv1d": conv_by_torch, "eager shifts": conv_by_shifts}
        return [Peer(name, conv_call(case, conv)) for name, conv in forms.items()]
    assert isinstance(case, RelaCase)
    return [
        Peer(f"eager {form.__name__}", None, f"L x L products at L={case.length}")
        if form is eager.causal_masked and case.length > LONGEST_MASKED
        else Peer(f"eager {form.__name__}", eager_rela(case, form, eager.gated_rela))
        for form in eager.FORMS[case.mode]
    ]


def compiled_peer(case: Case, eager_name: str) -> Peer:
    """torch.compile of an eager peer; it compiles when it is first called."""
    torch.compiler.reset()  # each case is compiled once, whatever others were before
    form = eager_name.removeprefix("eager ")
    if isinstance(case, ConvCase):
        conv = {"conv1d": conv_by_torch, "shifts": conv_by_shifts}[form]
        return Peer("torch.compile", conv_call(case, torch.compile(conv, dynamic=False)), f"of {form}")
    assert isinstance(case, RelaCase)
    function = {f.__name__: f for f in eager.FORMS[case.mode]}[form]
    op = torch.compile(eager.gated_rela, dynamic=False)
    return Peer("torch.compile", eager_rela(case, function, op), f"of {form}")


def package_peers(case: Case) -> list[Peer]:
    """Packages, installed or not."""
    if isinstance(case, ConvCase):
        conv, note = package_conv()
        return [Peer("causal_conv1d package", None if conv is None else conv_call(case, conv), note)]
    assert isinstance(case, RelaCase)
    return [fla_peer(case), fast_transformers_peer(case)]
