"""What the benchmarks share: interleaved timing, peak memory, and a record with machine and commit."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import recgrela
from recgrela.ops._library import _C


def medians(variants: dict[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> dict[str, float]:
    """Median seconds of each variant over `rounds` rounds in which the variants take turns.

    On a shared machine a single figure is noise; taking turns makes the ratios comparable.
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
    """Bytes by which `target(*args)()` raises a fresh process's memory at its highest, median of 3; Linux.

    `target(*args)` makes the operands, which do not count; `target(*warm_up)()`, a smaller case, has brought
    the code and its threads into memory before.
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
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process still holds would hide what `run` takes
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


def gate(name: str, expected: torch.Tensor, got: torch.Tensor, ratio: float) -> float:
    """The error relative to the largest expected value; no speed is reported beyond `ratio`."""
    error = ((got.double() - expected.double()).abs().max() / expected.double().abs().max()).item()
    if not error <= ratio:
        raise SystemExit(f"{name} is wrong (relative error {error:.2g}): no speed is reported")
    return error


def record(benchmark: str, settings: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Write the results with machine, commit and date to benchmarks/results/, and say where."""
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
