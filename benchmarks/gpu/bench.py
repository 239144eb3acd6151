"""The op benchmarks of gpu_check.py: a correctness gate first, then medians of interleaved device times.

Each sample runs a forward and a backward between device events, on the next of several sets of operands that
together exceed twice the L2 cache. The device is kept busy until the host has queued both, so that the times
are the device's alone; what the host takes is reported beside them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu.ops import (
    PEER_TOLERANCES,
    TOLERANCES,
    Case,
    ConvCase,
    Operands,
    RelaCase,
    errors_of,
    fault_of,
    results,
)
from benchmarks.gpu.peers import Call, Peer, compiled_peer, describe, eager_peers, package_peers, time_limit
from benchmarks.gpu.scans import LinearScanCase, SelectiveScanCase

OURS = "recgrela"
COPY_BYTES = 1 << 30
MEMORY_SETS = 8  # most sets of operands


@dataclass
class Samples:
    """Seconds of one variant."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)

    def medians(self) -> tuple[float, float]:
        return statistics.median(self.forward), statistics.median(self.backward)


def is_cuda(device: torch.device | str) -> bool:
    return torch.device(device).type == "cuda"


def copy_bandwidth(device: torch.device | str, size: int = COPY_BYTES, runs: int = 20) -> float:
    """Bytes read and written per second by a device-to-device copy of `size` bytes, median."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(runs + 3):
        times.append(timed(device, lambda: target.copy_(source)))
    return 2 * size / statistics.median(times[3:])


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


def sleep_rate() -> float:
    """Cycles a second of torch.cuda._sleep."""
    cycles = 2_000_000
    timed("cuda", lambda: torch.cuda._sleep(cycles))
    return cycles / timed("cuda", lambda: torch.cuda._sleep(cycles))


def sample(call: Call, x: Operands, into: Samples, cycles: int) -> None:
    """One forward and backward; `cycles` keep a GPU busy while the host queues them."""
    inputs = list(x.inputs.values())
    if not is_cuda(x.dy.device):
        began = time.perf_counter()
        y = call(x)
        middle = time.perf_counter()
        torch.autograd.grad(y, inputs, x.dy)
        ended = time.perf_counter()
        into.forward.append(middle - began)
        into.backward.append(ended - middle)
        into.host.append(ended - began)
        return
    start, middle_event, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    torch.cuda._sleep(cycles)
    began = time.perf_counter()
    start.record()
    y = call(x)
    middle_event.record()
    grads = torch.autograd.grad(y, inputs, x.dy)
    end.record()
    into.host.append(time.perf_counter() - began)
    end.synchronize()
    del y, grads
    into.forward.append(start.elapsed_time(middle_event) / 1e3)
    into.backward.append(middle_event.elapsed_time(end) / 1e3)


def measure(calls: dict[str, Call], sets: Sequence[Operands], rounds: int) -> dict[str, Samples]:
    """Samples of each variant over rounds in which the variants take turns."""
    cuda = is_cuda(sets[0].dy.device)
    rate = sleep_rate() if cuda else 0.0
    measured = {}
    busy = {}
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
    """Bytes that a forward and backward hold at most beyond their operands; None without a GPU."""
    if not is_cuda(x.dy.device):
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = call(x)
    grads = torch.autograd.grad(y, list(x.inputs.values()), x.dy)
    torch.cuda.synchronize()
    del y, grads
    return torch.cuda.max_memory_allocated() - before


def number_of_sets(case: Case, cache_bytes: int) -> int:
    """So many sets of operands that their inputs exceed twice the L2 cache."""
    return min(MEMORY_SETS, max(2, math.ceil(2 * cache_bytes / case.forward_bytes) + 1))


def figures(case: Case, samples: Samples, bandwidth: float) -> dict[str, float]:
    """Microseconds, GB/s by the floor's bytes, and the share of what a copy's bandwidth would allow."""
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


def gated(case: Case, peer: Peer, x: Operands, expected: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The peer's record so far, and whether it may be timed."""
    record: dict[str, Any] = {"note": peer.note} if peer.note else {}
    if peer.call is None:
        return record, False
    try:
        errors = errors_of(expected, results(peer.call(x), x))
    except Exception as error:  # other people's code: whatever it raises is its result
        return record | {"note": describe(error)}, False
    record["largest_error"] = max(norm for norm, _ in errors.values())
    if fault := fault_of(errors, PEER_TOLERANCES[case.dtype]):
        return record | {"note": f"wrong: {fault}"}, False
    return record, True


def run_case(
    case: Case,
    device: torch.device | str,
    bandwidth: float,
    *,
    cache_bytes: int = 0,
    rounds: int = 20,
    compile_seconds: float = 0.0,
    packages: bool = True,
) -> dict[str, Any]:
    """The record of one case: ours and its peers side by side; no speed where the check failed.

    Args:
        bandwidth: bytes a second of a copy.
        cache_bytes: size of the L2 cache.
        compile_seconds: most that torch.compile may take; 0 leaves it out.
        packages: measure installed packages too.
    """
    record: dict[str, Any] = {"case": str(case), "status": "passed", "peers": {}}
    sets = [case.operands(device, seed) for seed in range(number_of_sets(case, cache_bytes))]
    x = sets[0]
    expected = case.expected(x)
    errors = errors_of(expected, results(case.ours(x), x))
    record["errors"] = {name: {"norm": norm, "largest": most} for name, (norm, most) in errors.items()}
    if fault := fault_of(errors, TOLERANCES[case.dtype]):
        return record | {"status": "failed", "fault": fault}
    calls: dict[str, Call] = {OURS: case.ours}

    def add(peer: Peer) -> bool:
        record["peers"][peer.name], usable = gated(case, peer, x, expected)
        if usable and peer.call is not None:
            calls[peer.name] = peer.call
        return usable

    eager_names = [peer.name for peer in eager_peers(case) if add(peer)]
    if packages:
        for peer in package_peers(case):
            add(peer)
    if compile_seconds and eager_names:
        quick = measure({name: calls[name] for name in eager_names}, sets, 3)
        best = min(eager_names, key=lambda name: sum(quick[name].medians()))
        try:
            with time_limit(compile_seconds):
                add(compiled_peer(case, best))
        except TimeoutError as error:  # between two of gated's own attempts to catch it
            record["peers"]["torch.compile"] = {"note": str(error)}
    samples = measure(calls, sets, rounds)
    memory = {name: peak_bytes(call, x) for name, call in calls.items()}
    own = sum(samples[OURS].medians())
    for name in calls:
        found: dict[str, Any] = figures(case, samples[name], bandwidth) | {"peak_bytes": memory[name]}
        if name == OURS:
            record["ours"] = found
            continue
        for i, direction in enumerate(("forward", "backward")):
            found[f"{direction}_ratio"] = samples[name].medians()[i] / samples[OURS].medians()[i]
        found["ratio"] = sum(samples[name].medians()) / own
        record["peers"][name] |= found
    timed_eager = [name for name in eager_names if name in calls]
    if timed_eager:
        record["faster_eager"] = min(timed_eager, key=lambda name: record["peers"][name]["ratio"])
    return record


@dataclass(frozen=True)
class Plan:
    """A case and how thoroughly to run it."""

    case: Case
    rounds: int
    compiled: bool = False
    packages: bool = True


def plans(quick: bool) -> list[Plan]:
    """The published size first, then the convolution, the scans, long sequences and head widths."""
    batch, long, wide = (256, 4096, 128) if quick else (2048, 16384, 1024)
    many, few = (10, 5) if quick else (40, 12)
    chosen = [
        Plan(RelaCase(batch, 200, 64, dtype, causal=causal), many, compiled=not quick)
        for dtype in ("fp32", "bf16")
        for causal in (False, True)
    ]
    chosen += [Plan(ConvCase(batch, 200, 64, d), many, compiled=not quick) for d in ("fp32", "bf16")]
    chosen += [
        Plan(case, few)
        for case in (
            LinearScanCase(batch, 200, 64, "fp32", complex=True),
            LinearScanCase(batch, 200, 64, "fp32"),
            LinearScanCase(batch, 200, 64, "bf16"),
            SelectiveScanCase(batch, 200, 128, "fp32"),
            SelectiveScanCase(batch, 200, 128, "bf16"),
            SelectiveScanCase(batch, 200, 128, "bf16", states=32),
            LinearScanCase(8, long, 64, "fp32"),
            SelectiveScanCase(8, 4096, 128, "fp32"),
        )
    ]
    chosen += [
        Plan(RelaCase(8, long, 64, dtype, causal=causal), few)
        for dtype in ("bf16", "fp32")
        for causal in (True, False)
    ]
    chosen += [
        Plan(RelaCase(wide, 200, 128, dtype, heads=128 // width, causal=causal), few, packages=False)
        for width in (32, 64, 128)
        for dtype, causal in (("bf16", True), ("bf16", False), ("fp32", True))
    ]
    return chosen


def run_plans(
    chosen: Sequence[Plan],
    device: torch.device | str,
    seconds: float,
    save: Callable[[dict[str, Any]], None],
    copy_bytes: int = COPY_BYTES,
) -> dict[str, Any]:
    """Run the cases in order until the time is over; `save` gets what there is after each.

    Returns:
        {"copy_gb_s", "l2_bytes", "cases": [records]}; cases not begun have status "not run".
    """
    ends = time.monotonic() + seconds
    compile_left = 0.4 * seconds
    cache = int(torch.cuda.get_device_properties(device).L2_cache_size) if is_cuda(device) else 0
    bandwidth = copy_bandwidth(device, copy_bytes)
    found: dict[str, Any] = {"copy_gb_s": bandwidth / 1e9, "l2_bytes": cache, "cases": []}
    longest = 0.0
    for plan in chosen:
        began = time.monotonic()
        if began + longest > ends:
            record = {"case": str(plan.case), "status": "not run", "fault": "no time left", "peers": {}}
        else:
            budget = min(30.0, compile_left) if plan.compiled else 0.0
            record = attempt(plan, device, bandwidth, cache, budget if budget > 5 else 0.0)
            took = time.monotonic() - began
            compile_left -= took if plan.compiled else 0.0
            longest = 1.5 * took if not plan.compiled else longest
        print(record["case"], record["status"], record.get("fault", ""), flush=True)
        found["cases"].append(record)
        save(found)
    return found


def attempt(
    plan: Plan, device: torch.device | str, bandwidth: float, cache: int, compile_seconds: float
) -> dict[str, Any]:
    """`run_case`, an error being a failed record."""
    try:
        return run_case(
            plan.case,
            device,
            bandwidth,
            cache_bytes=cache,
            rounds=plan.rounds,
            compile_seconds=compile_seconds,
            packages=plan.packages,
        )
    except Exception as error:  # the other cases still count
        return {"case": str(plan.case), "status": "failed", "fault": describe(error), "peers": {}}
    finally:
        if is_cuda(device):
            torch.cuda.empty_cache()
