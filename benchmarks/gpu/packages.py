"""Calls to other packages' kernels for the same operators."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.measure import Call
from python_tests.cases import (
    CausalConv1dCase,
    GatedRelaCase,
    LinearScanCase,
    Operands,
    SelectiveScanCase,
)
from python_tests.cases.causal_conv1d import conv_by_torch
from python_tests.cases.gated_rela import EPS
from recgrela.ops import rotate

NOT_INSTALLED = "not installed"


class Unusable(Exception):
    """Says why a package cannot compute a case."""


@dataclass(frozen=True)
class Package:
    """A package and how it computes a case.

    Attributes:
        module: the top-level module.
        op: the op that it computes.
        make: makes a call for a case of this op; raises `Unusable`.
    """

    module: str
    op: str
    make: Callable[[Any], Call]


def describe(error: BaseException) -> str:
    """An error as one line of a report."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def load(module: str, attribute: str) -> Any:
    """An attribute of a package.

    Raises:
        Unusable: the package is not installed or cannot be imported.
    """
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0] == module.partition(".")[0]
        raise Unusable(NOT_INSTALLED if missing else describe(error)) from error
    except Exception as error:  # a package built for another torch can raise any error
        raise Unusable(f"cannot be imported: {describe(error)}") from error


def load_convolution() -> Callable[..., Tensor]:
    """SiLU of the causal convolution of [B, L, C] by the package causal_conv1d."""
    fn = load("causal_conv1d", "causal_conv1d_fn")
    return lambda x, weight, bias: fn(x.mT, weight, bias, activation="silu").mT


def convolution(case: CausalConv1dCase) -> Call:
    conv = load_convolution()

    def call(x: Operands) -> Tensor:
        t = case.dense(x)
        return conv(t["x"], t["weight"], t["bias"]).flatten(0, 1)

    return call


def attention(case: GatedRelaCase, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Call:
    """gated_rela with a package's causal product (q k^T) v, [B, L, H, d]; PyTorch computes the rest."""
    try:
        conv = load_convolution()
    except Unusable:
        conv = conv_by_torch

    def call(x: Operands) -> Tensor:
        t = case.dense(x)
        rotary = t["rotary"].to(case.dtype)
        fq, fk = (F.elu(part) + 1 for part in t["q"].chunk(2, dim=-1))
        heads = (fq, fk, rotate(fq, rotary), rotate(fk, rotary), t["v"])
        fq, fk, rq, rk, v = (part.unflatten(-1, (case.heads, -1)) for part in heads)
        count = torch.arange(1, case.length + 1, dtype=torch.float32, device=v.device)[:, None, None]
        den = (fq * fk.cumsum(1, dtype=torch.float32)).sum(-1, keepdim=True) / count + EPS
        o = (product(rq, rk, v) / count / den).flatten(-2)
        local = conv(t["v"], *(t[name].to(case.dtype) for name in ("conv_weight", "conv_bias")))
        return ((o + local) * F.silu(t["g"])).to(case.dtype).flatten(0, 1)

    return call


def flash_linear_attention(case: GatedRelaCase) -> Call:
    fn = load("fla.ops.linear_attn", "chunk_linear_attn")
    if not case.causal:
        raise Unusable("causal only")
    return attention(case, lambda q, k, v: fn(q, k, v, scale=1.0, normalize=False)[0])


def fast_transformers(case: GatedRelaCase) -> Call:
    fn = load("fast_transformers.causal_product", "causal_dot_product")
    if not case.causal or case.dtype != torch.float32:
        raise Unusable("causal float32 only")

    def product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return fn(*(x.transpose(1, 2).contiguous() for x in (q, k, v))).transpose(1, 2)

    return attention(case, product)


def mamba(case: SelectiveScanCase) -> Call:
    fn = load("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")

    def call(x: Operands) -> Tensor:
        t = case.dense(x)
        u, delta, b, c, z = (t[name].mT.contiguous() for name in ("u", "delta", "B", "C", "z"))
        y = fn(u, delta, t["A"], b, c, t["D"], z, t["delta_bias"], delta_softplus=True)
        return y.mT.flatten(0, 1)

    return call


def accelerated_scan(case: LinearScanCase) -> Call:
    """Pads rows, because the package takes [B, C, L] where L is a power of 2."""
    fn = load("accelerated_scan.warp", "scan")
    if case.dtype.is_complex or not case.per_step:
        raise Unusable("real coefficients of each step only")

    def call(x: Operands) -> Tensor:
        t = case.dense(x)
        more = max(32, 1 << (case.length - 1).bit_length()) - case.length
        a, rows = (F.pad(t[name].to(case.dtype).mT, (0, more)).contiguous() for name in ("a", "x"))
        return fn(a, rows)[..., : case.length].mT.flatten(0, 1)

    return call


PACKAGES = {
    "flash-linear-attention": Package("fla", "gated_rela", flash_linear_attention),
    "fast-transformers": Package("fast_transformers", "gated_rela", fast_transformers),
    "causal_conv1d": Package("causal_conv1d", "causal_conv1d", convolution),
    "mamba_ssm": Package("mamba_ssm", "selective_scan", mamba),
    "accelerated_scan": Package("accelerated_scan", "linear_scan", accelerated_scan),
}
