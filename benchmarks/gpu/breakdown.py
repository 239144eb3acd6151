"""The device time of a training step by kind of kernel."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.autograd import DeviceType
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


def by_kind(events: Iterable[tuple[str, float]], steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds and launches a step by kind, the longest first, of kernels with their microseconds."""
    kinds: dict[str, dict[str, float]] = {}
    for name, microseconds in events:
        kind = kinds.setdefault(kind_of(name), {"ms": 0.0, "launches": 0.0})
        kind["ms"] += microseconds / 1e3 / steps
        kind["launches"] += 1 / steps
    return dict(sorted(kinds.items(), key=lambda item: -item[1]["ms"]))


def on_device(events: Iterable[Any]) -> Iterator[tuple[str, float]]:
    """Kernels, copies and fills of a GPU among a profile's events, without calls on the host and ranges."""
    for event in events:
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            yield event.name, event.time_range.elapsed_us()


def breakdown(device: str, take: Callable[[], None], steps: int) -> dict[str, dict[str, float]]:
    """`by_kind` of some steps. On the CPU operators count as kernels."""
    cuda = is_cuda(device)
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            take()
        if cuda:
            torch.cuda.synchronize()
    events = profiled.events()
    return by_kind(on_device(events) if cuda else ((e.name, e.self_cpu_time_total) for e in events), steps)
