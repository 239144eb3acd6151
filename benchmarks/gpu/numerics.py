"""The steps of gpu_check.py that call the ops: reference, benchmarks, graphs, and the sanitizer's target."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.gpu import bench as gpu_bench
from benchmarks.gpu import ops as gpu_ops
from benchmarks.gpu import scans as gpu_scans
from benchmarks.gpu.steps import SANITIZED, Outcome, Settings


def reference(settings: Settings) -> Outcome:
    """Forward and gradients against the CPU kernels in float64, and two runs bit by bit."""
    faults: list[str] = []
    cases: list[dict[str, Any]] = []
    worst: dict[str, float] = {}
    few = (32, 200, 64)
    compared: list[gpu_ops.Case] = []
    for dtype in ("fp32", "fp16", "bf16"):
        compared += [gpu_ops.RelaCase(*few, dtype, causal=causal) for causal in (False, True)]
        compared += [
            gpu_ops.RelaCase(8, 0, 64, dtype, (1, 257, 0, 3, 64, 2, 65, 4129), causal=causal)
            for causal in (False, True)
        ]
        compared.append(gpu_ops.ConvCase(*few, dtype))
        compared += [gpu_scans.LinearScanCase(*few, dtype), gpu_scans.SelectiveScanCase(*few, dtype)]
    compared.append(gpu_scans.LinearScanCase(*few, "fp32", complex=True))
    for case in compared:
        errors = gpu_ops.compare_with_cpu(case, "cuda")
        fault = gpu_ops.fault_of(errors, gpu_ops.TOLERANCES[case.dtype])
        cases.append({"case": str(case), "errors": errors, "fault": fault})
        worst[case.dtype] = max(worst.get(case.dtype, 0.0), *(norm for norm, _ in errors.values()))
        faults += [f"{case}: {fault}"] if fault else []
    batch = 256 if settings.quick else 2048
    repeated: list[gpu_ops.Case] = []
    for dtype in ("fp32", "bf16"):
        repeated += [gpu_ops.RelaCase(batch, 200, 64, dtype, causal=causal) for causal in (False, True)]
        repeated += [gpu_ops.RelaCase(2, 16384, 64, dtype), gpu_ops.ConvCase(batch, 200, 64, dtype)]
        repeated += [gpu_scans.SelectiveScanCase(batch, 200, 128, dtype)]
    repeated += [
        gpu_scans.LinearScanCase(batch, 200, 64, "fp32", complex=True),
        gpu_scans.SelectiveScanCase(2, 4096, 64, "fp32"),
    ]
    for case in repeated:
        x = case.operands("cuda")
        first, second = (gpu_ops.results(case.ours(x), x) for _ in range(2))
        if names := gpu_ops.differing(first, second):
            faults.append(f"{case}: two runs differ in {', '.join(names)}")
    details = {"cases": cases, "repeated": [str(case) for case in repeated], "faults": faults}
    summary = ", ".join(f"{dtype} {error:.1e}" for dtype, error in worst.items())
    if faults:
        return "failed", f"{len(faults)} faults: {faults[0]}", details
    return (
        "passed",
        f"largest error by norm: {summary}; {len(repeated)} cases equal bit by bit when repeated",
        details,
    )


def benchmarks(settings: Settings) -> Outcome:
    """Op benchmarks; see gpu_bench."""
    chosen = gpu_bench.plans(settings.quick)
    details = gpu_bench.run_plans(chosen, "cuda", settings.limit - 15, settings.save)
    return (*judge_benchmarks(details), details)


def judge_benchmarks(details: dict[str, Any]) -> tuple[str, str]:
    """Status and summary; a case without time is no failure, none at all is one."""
    statuses = [case["status"] for case in details["cases"]]
    counts = {status: statuses.count(status) for status in ("passed", "failed", "not run")}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    first = next((case for case in details["cases"] if case["status"] == "failed"), None)
    said += f"; copy {details['copy_gb_s']:,.0f} GB/s"
    said += f"; {first['case']}: {first['fault']}" if first else ""
    return ("failed" if counts["failed"] or not counts["passed"] else "passed"), said


def graph(settings: Settings) -> Outcome:
    """Ops captured in a CUDA graph, replayed on new operands, equal the plain call; no host waits."""
    faults: list[str] = []
    cases: list[gpu_ops.Case] = [
        gpu_ops.RelaCase(batch, length, 64, dtype, causal=causal)
        for (batch, length), dtype, causal in itertools.product(
            ((64, 200), (2, 4096)), ("fp32", "bf16"), (True, False)
        )
    ]
    cases += [gpu_scans.LinearScanCase(64, 200, 64, "fp32", complex=True)]
    cases += [gpu_scans.SelectiveScanCase(*size, 64, "bf16") for size in ((64, 200), (2, 4096))]
    for case in cases:
        static, fresh = case.operands("cuda", 0), case.operands("cuda", 1)
        expected = gpu_ops.results(case.ours(fresh), fresh)
        try:
            torch.cuda.set_sync_debug_mode("error")
            gpu_ops.results(case.ours(fresh), fresh)
        except RuntimeError as error:
            faults.append(f"{case}: waits for the device: {error}")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        try:
            replayed = capture(case, static, fresh)
        except RuntimeError as error:
            faults.append(f"{case}: {error}")
            break  # a failed capture leaves the context unusable
        if names := gpu_ops.differing(expected, replayed):
            faults.append(f"{case}: the replay differs in {', '.join(names)}")
    details = {"cases": [str(case) for case in cases], "faults": faults}
    if faults:
        return "failed", f"{len(faults)} faults: {faults[0]}", details
    return "passed", f"{len(cases)} cases equal bit by bit when replayed on new operands", details


def capture(case: gpu_ops.Case, static: gpu_ops.Operands, fresh: gpu_ops.Operands) -> dict[str, torch.Tensor]:
    """y and gradients of `fresh`, by a graph captured on `static`."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            gpu_ops.results(case.ours(static), static)
    torch.cuda.current_stream().wait_stream(stream)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        replayed = gpu_ops.results(case.ours(static), static)
    with torch.no_grad():
        for name, x in static.inputs.items():
            x.copy_(fresh.inputs[name])
        static.dy.copy_(fresh.dy)
    for value in replayed.values():
        value.fill_(float("nan"))
    recorded.replay()
    torch.cuda.synchronize()
    return replayed


def sanitize_target(device: str = "cuda", dtypes: Sequence[str] = ("fp32", "fp16", "bf16")) -> int:
    """Forward and backward of all ops in every dtype and width, small; returns how many."""
    cases = gpu_ops.small_cases(dtypes) + gpu_scans.small_cases(dtypes)
    for case in cases:
        x = case.operands(device)
        gpu_ops.results(case.ours(x), x)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{SANITIZED} {len(cases)} forward and backward passes", flush=True)
    return len(cases)
