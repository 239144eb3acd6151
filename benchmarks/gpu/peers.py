"""What gpu_check.py measures our ops against: eager PyTorch, torch.compile, and packages where installed."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import eager
from benchmarks.cpu.scans import linear_by_row, selective_by_row
from benchmarks.gpu.ops import (
    DTYPES,
    Case,
    ConvCase,
    Operands,
    RelaCase,
    shifted_conv,
)
from benchmarks.gpu.scans import LinearScanCase, ScanCase, SelectiveScanCase
from recgrela.ops import rotate

NOT_INSTALLED = "not installed"
LONGEST_MASKED = 2048  # beyond it nobody would make L x L products
LONGEST_LOOP = 1024  # nor call kernels for each row
EPS = 1e-6

Call = Callable[[Operands], Tensor]
Form = Callable[[dict[str, Tensor]], Tensor]  # of a scan's dense inputs by name


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


def scan_call(case: ScanCase, form: Form) -> Call:
    """A form of dense [B, L, ...] inputs by name; sums of rows stay in float32."""

    def call(x: Operands) -> Tensor:
        t = {n: v if n in case.parameters else dense(case, v) for n, v in x.inputs.items()}
        return form(t).to(x.dy.dtype).flatten(0, 1)

    return call


def scan_by_row(case: ScanCase) -> Call:
    if isinstance(case, LinearScanCase):
        return scan_call(case, lambda t: linear_by_row(t["x"], t["a"]))
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    wide = torch.promote_types(DTYPES[case.dtype], torch.float32)
    return scan_call(case, lambda t: selective_by_row(*(t[name].to(wide) for name in names)))


def eager_scans(case: ScanCase) -> list[Peer]:
    """A loop over rows; of linear_scan also log2(L) steps, which would hold all states of the other."""
    long = case.length > LONGEST_LOOP
    note = f"{case.length} steps at L={case.length}" if long else ""
    peers = [Peer("eager by_row", None if long else scan_by_row(case), note)]
    if isinstance(case, LinearScanCase):
        peers.append(Peer("eager by_doubling", scan_call(case, case.by_doubling)))
    return peers


def mamba_form() -> tuple[Form | None, str]:
    """mamba_ssm's kernels, of [B, I, L]."""
    fn, note = load("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")
    if fn is None:
        return None, note

    def form(t: dict[str, Tensor]) -> Tensor:
        u, delta, b, c, z = (t[name].mT.contiguous() for name in ("u", "delta", "B", "C", "z"))
        return fn(u, delta, t["A"], b, c, t["D"], z, t["delta_bias"], delta_softplus=True).mT

    return form, ""


def accelerated_scan_form() -> tuple[Form | None, str]:
    """accelerated_scan's kernels, of [B, C, L] where L is a power of 2."""
    fn, note = load("accelerated_scan.warp", "scan")
    if fn is None:
        return None, note

    def form(t: dict[str, Tensor]) -> Tensor:
        length = t["x"].shape[1]
        more = max(32, 1 << (length - 1).bit_length()) - length
        a, x = (F.pad(t[name].to(t["x"].dtype).mT, (0, more)).contiguous() for name in ("a", "x"))
        return fn(a, x)[..., :length].mT

    return form, ""


def package_scans(case: ScanCase) -> list[Peer]:
    if isinstance(case, LinearScanCase) and case.complex:
        return []  # the packages' scans are real
    name = "mamba_ssm" if isinstance(case, SelectiveScanCase) else "accelerated_scan"
    form, note = mamba_form() if name == "mamba_ssm" else accelerated_scan_form()
    return [Peer(name, None if form is None else scan_call(case, form), note)]


def eager_peers(case: Case) -> list[Peer]:
    """The natural forms in plain PyTorch."""
    if isinstance(case, ScanCase):
        return eager_scans(case)
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
    if isinstance(case, ScanCase):
        return package_scans(case)
    if isinstance(case, ConvCase):
        conv, note = package_conv()
        return [Peer("causal_conv1d package", None if conv is None else conv_call(case, conv), note)]
    assert isinstance(case, RelaCase)
    return [fla_peer(case), fast_transformers_peer(case)]
