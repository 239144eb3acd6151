"""Times variants in turn, measures peak memory, and writes records that name the machine and the commit."""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import recgrela
from python_tests.cases.compare import Error, errors_of, fault_of
from recgrela.ops._library import _C

OURS = "recgrela"


def arguments(description: str, **defaults: int) -> argparse.ArgumentParser:
    """A command-line parser with an integer option --NAME for each default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    return parser


def medians(variants: dict[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> dict[str, float]:
    """Median seconds of each variant over `rounds` rounds in which the variants take turns.

    On a shared machine single times are noisy; taking turns makes their ratios comparable.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(warm_up + rounds):
        for name, f in variants.items():
            began = time.perf_counter()
            f()
            if i >= warm_up:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(target: Callable[..., Callable[[], object]], warm_up: tuple, args: tuple) -> int:
    """Bytes by which `target(*args)()` raises the peak memory of a fresh process, median of 3; Linux only.

    `target(*args)` makes the operands, which are not counted. `target(*warm_up)()`, a smaller case, runs
    first, to load code and start threads.
    """
    return statistics.median(_peak_of_one(target, warm_up, args) for _ in range(3))


def _peak_of_one(target: Callable[..., Callable[[], object]], warm_up: tuple, args: tuple) -> int:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(sender, target, warm_up, args))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _measure_peak(
    sender: Any, target: Callable[..., Callable[[], object]], warm_up: tuple, args: tuple
) -> None:
    target(*warm_up)()
    run = target(*args)
    ctypes.CDLL(None).malloc_trim(0)  # otherwise `run` could reuse freed memory, which would not be counted
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    outputs = run()
    sender.send(_status("VmHWM") - before)
    del outputs


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def check_results(
    name: str, expected: dict[str, torch.Tensor], got: dict[str, torch.Tensor], ratio: float
) -> float:
    """The largest error relative to the largest expected value; exits if it is larger than `ratio`."""
    errors = errors_of(expected, got)
    if fault := fault_of(errors, Error(ratio, ratio)):
        raise SystemExit(f"{name}: {fault}; no speed is reported for wrong results")
    return max(error.largest for error in errors.values())


def compare(
    title: str,
    make: Callable[..., Callable[[], object]],
    variants: Sequence[str],
    args: tuple,
    small: tuple,
    rounds: int,
    warm_up: int = 2,
) -> dict[str, Any]:
    """Prints and returns the time and peak memory of our variant beside others.

    Args:
        title: heading of the printed results.
        make: `make(variant, *args)` returns the function to measure; it is called in other processes too.
        variants: `OURS` and at least one other.
        args: the sizes.
        small: smaller sizes, to warm up before memory is measured.
        rounds: rounds in which the variants take turns.
        warm_up: rounds before them that are not measured.
    """
    seconds = medians({name: make(name, *args) for name in variants}, rounds, warm_up)
    memory = {name: peak_memory(make, (name, *small), (name, *args)) for name in variants}
    best = min((name for name in variants if name != OURS), key=seconds.__getitem__)
    faster, share = seconds[best] / seconds[OURS], memory[OURS] / memory[best]
    print(title)
    for name in variants:
        print(f"  {name:20s} {1e3 * seconds[name]:9.2f} ms  {memory[name] / 1e6:8.1f} MB peak")
    print(f"  {faster:.2f} times faster than {best}, with {share:.3f} of its memory")
    return {
        "milliseconds": {name: round(1e3 * s, 3) for name, s in seconds.items()},
        "peak_megabytes": {name: round(m / 1e6, 1) for name, m in memory.items()},
        "times_faster_than_the_faster_eager": round(faster, 2),
        "share_of_its_peak_memory": round(share, 4),
    }


def record(benchmark: str, settings: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Writes the results with machine, commit and date to benchmarks/results/, and prints the path."""
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    content = {
        "benchmark": benchmark,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or "unknown",
        "machine": {
            "cpu": _cpu_name(),
            "threads": torch.get_num_threads(),
            "isa": _C.cpu_isa(),
            "torch": torch.__version__,
            "recgrela": recgrela.__version__,
        },
        "settings": settings,
        "results": results,
    }
    path = here / "results" / f"{benchmark}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"written to {path}")


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
