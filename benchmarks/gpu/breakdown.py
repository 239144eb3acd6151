"""The device time of a training step by kind of kernel."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.measure import is_cuda

# Kinds of PyTorch's kernels and of its operators on the CPU; the first pattern that occurs in a name counts.
KINDS = (
    ("Memcpy and Memset", "memcpy|memset"),
    ("Triton", "triton"),
    ("Adam", "adam|multi_tensor"),
    ("LayerNorm", "layer_?norm|gammabeta"),
    ("products", "gemm|cutlass|nvjet|gemv|splitk|cublas|::mm|addmm|bmm|xmma"),
    ("softmax", "softmax|logsumexp"),
    ("dropout and random numbers", "dropout|masked_scale|philox|distribution|bernoulli|random"),
    ("embedding", "embedding|sum_and_scatter|krn_partial|grad_weight"),
    ("sorts and scans", "sort|radix|scan|merge|cub::"),
    ("look-ups", "index|gather|scatter"),
    ("sums", "reduce|::sum"),
    ("activations", "gelu|silu|sigmoid"),
    ("casts and copies", "copy|_to_"),
    ("additions", "functor_add|::add"),
    ("other elementwise", "elementwise"),
)
OURS = re.compile(r"recgrela::(?:\w+::|\(anonymous namespace\)::)*(\w+?)(?:_kernel)?\b")


def kind_of(name: str) -> str:
    """The kind of a kernel, by its name; our kernels are kinds of their own."""
    if found := OURS.search(name):
        return f"recgrela {found[1]}"
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), "other")


def breakdown(device: str, take: Callable[[], None], steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds and launches a step by kind, the longest first. On the CPU operators count as kernels."""
    cuda = is_cuda(device)
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            take()
        if cuda:
            torch.cuda.synchronize()
    kinds: dict[str, dict[str, float]] = {}
    for event in profiled.key_averages():
        microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        if cuda and not microseconds:
            continue  # a call on the host
        kind = kinds.setdefault(kind_of(event.key), {"ms": 0.0, "launches": 0.0})
        kind["ms"] += microseconds / 1e3 / steps
        kind["launches"] += event.count / steps
    return dict(sorted(kinds.items(), key=lambda item: -item[1]["ms"]))


def launches(kinds: dict[str, dict[str, float]]) -> float:
    return sum(kind["launches"] for kind in kinds.values())
