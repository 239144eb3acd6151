"""Measures times with CUDA events, peak memory and bandwidth.

A sample is a forward and a backward on one of several sets of operands, which take turns and together exceed
twice the L2 cache. The device is kept busy until the host has queued both passes, so that the times do not
include the host, whose time is reported separately.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from python_tests.cases import Case, Operands

COPY_BYTES = 1 << 30
MAX_SETS = 8

Call = Callable[[Operands], Tensor]


@dataclass
class Samples:
    """Seconds of each sample of one variant."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)

    def medians(self) -> tuple[float, float]:
        return statistics.median(self.forward), statistics.median(self.backward)


def is_cuda(device: torch.device | str) -> bool:
    return torch.device(device).type == "cuda"


def timed(device: torch.device | str, work: Callable[[], object]) -> float:
    """Seconds of one call."""
    if not is_cuda(device):
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def copy_bandwidth(device: torch.device | str, size: int = COPY_BYTES, runs: int = 20) -> float:
    """Bytes read and written per second by a copy of `size` bytes on the device, median."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    times = [timed(device, lambda: target.copy_(source)) for _ in range(runs + 3)]
    return 2 * size / statistics.median(times[3:])


def sleep_rate() -> float:
    """Cycles per second of torch.cuda._sleep."""
    cycles = 2_000_000
    timed("cuda", lambda: torch.cuda._sleep(cycles))
    return cycles / timed("cuda", lambda: torch.cuda._sleep(cycles))


def sample(call: Call, x: Operands, into: Samples, cycles: int) -> None:
    """One forward and backward; a GPU is busy for `cycles` while the host queues them."""
    inputs, d_y = list(x.inputs.values()), x.upstream["y"]
    if not is_cuda(d_y.device):
        began = time.perf_counter()
        y = call(x)
        middle = time.perf_counter()
        torch.autograd.grad(y, inputs, d_y)
        ended = time.perf_counter()
        into.forward.append(middle - began)
        into.backward.append(ended - middle)
        into.host.append(ended - began)
        return
    start, between, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    torch.cuda._sleep(cycles)
    began = time.perf_counter()
    start.record()
    y = call(x)
    between.record()
    grads = torch.autograd.grad(y, inputs, d_y)
    end.record()
    into.host.append(time.perf_counter() - began)
    end.synchronize()
    del y, grads
    into.forward.append(start.elapsed_time(between) / 1e3)
    into.backward.append(between.elapsed_time(end) / 1e3)


def measure(calls: dict[str, Call], sets: Sequence[Operands], rounds: int) -> dict[str, Samples]:
    """Samples of each variant over rounds in which the variants take turns."""
    rate = sleep_rate() if is_cuda(sets[0].cu_seqlens.device) else 0.0
    measured, busy = {}, {}
    for name, call in calls.items():
        warm_up = Samples()
        for i in range(4):
            sample(call, sets[i % len(sets)], warm_up, 0)
        busy[name] = int(rate * min(2 * statistics.median(warm_up.host[1:]) + 2e-4, 0.05))
        measured[name] = Samples()
    for i in range(rounds):
        for name, call in calls.items():
            sample(call, sets[i % len(sets)], measured[name], busy[name])
    return measured


def peak_bytes(call: Call, x: Operands) -> int | None:
    """Peak bytes of a forward and backward beyond their operands; None without a GPU."""
    if not is_cuda(x.cu_seqlens.device):
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = call(x)
    grads = torch.autograd.grad(y, list(x.inputs.values()), x.upstream["y"])
    torch.cuda.synchronize()
    del y, grads
    return torch.cuda.max_memory_allocated() - before


def cache_bytes(device: torch.device | str) -> int:
    """Size of the L2 cache; 0 without a GPU."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size) if is_cuda(device) else 0


def number_of_sets(case: Case, cache: int) -> int:
    """Number of sets of operands that together exceed twice a cache of `cache` bytes."""
    return min(MAX_SETS, max(2, math.ceil(2 * cache / case.forward_bytes) + 1))


def make_sets(case: Case, device: torch.device | str) -> list[Operands]:
    """Sets of operands from the seeds 0, 1, ..."""
    return [case.operands(device, seed) for seed in range(number_of_sets(case, cache_bytes(device)))]


@lru_cache(maxsize=1)
def expected_results(case: Case, device: torch.device | str) -> dict[str, Tensor]:
    """Expected results for the first set of operands, cached for the last case."""
    return case.expected(case.operands(device))


def figures(case: Case, samples: Samples, bandwidth: float) -> dict[str, float]:
    """Microseconds, GB/s of the bytes that must move, and the share of a copy's bandwidth that this is."""
    forward, backward = samples.medians()
    found = {"host_us": 1e6 * statistics.median(samples.host)}
    for name, seconds, size in (
        ("forward", forward, case.forward_bytes),
        ("backward", backward, case.backward_bytes),
    ):
        found[f"{name}_us"] = 1e6 * seconds
        found[f"{name}_gb_s"] = size / seconds / 1e9
        found[f"{name}_share"] = size / bandwidth / seconds
    return found
