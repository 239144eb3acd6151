"""Steps that check the results of the ops on a GPU, and the program that compute-sanitizer runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.gpu.step import Outcome, Settings
from benchmarks.gpu.suites import SANITIZED
from python_tests.cases import CASES, Case
from python_tests.cases.capture import replay
from python_tests.cases.case import REAL_DTYPES
from python_tests.cases.compare import LABELS, TOLERANCES, Error, differing, errors_of, fault_of

UNEVEN = (1, 257, 0, 3, 64, 2, 65, 4129)


def compare_with_cpu(case: Case, device: torch.device | str) -> dict[str, Error]:
    """Errors of our op on a device against our CPU kernels in float64, on the same rounded operands."""
    x = case.operands(device)
    got = {name: t.cpu() for name, t in case.results(x).items()}
    return errors_of(case.on_cpu(x), got)


def every_variant(
    lengths: Sequence[tuple[int, ...]], dtypes: Sequence[torch.dtype] | None = None
) -> Iterator[Case]:
    """Every mode of every op at the given lengths, in all its dtypes or in those given."""
    for op in CASES:
        for dtype in op.dtypes:
            if dtypes is None or dtype in dtypes or dtype.is_complex:
                for each in lengths:
                    yield from op.variants(each, dtype)


def outcome(faults: list[str], details: dict[str, Any], passed: str) -> Outcome:
    details = details | {"faults": faults}
    if faults:
        return "failed", f"{len(faults)} faults: {faults[0]}", details
    return "passed", passed, details


def reference(settings: Settings) -> Outcome:
    """Compares results with the CPU kernels in float64, and repeated results bit by bit."""
    faults: list[str] = []
    compared: list[dict[str, Any]] = []
    largest: dict[str, float] = {}
    for case in every_variant(((200,) * 32, UNEVEN)):
        errors = compare_with_cpu(case, "cuda")
        fault = fault_of(errors, TOLERANCES[case.dtype])
        compared.append({"case": str(case), "errors": errors, "fault": fault})
        label = LABELS[case.dtype]
        largest[label] = max(largest.get(label, 0.0), *(error.norm for error in errors.values()))
        faults += [f"{case}: {fault}"] if fault else []
    lengths = ((200,) * (256 if settings.quick else 2048), (16_384,) * 2)
    repeated = list(every_variant(lengths, (torch.float32, torch.bfloat16)))
    for case in repeated:
        x = case.operands("cuda")
        if names := differing(case.results(x), case.results(x)):
            faults.append(f"{case}: two runs differ in {', '.join(names)}")
    summary = ", ".join(f"{label} {error:.1e}" for label, error in largest.items())
    summary = f"largest error by norm: {summary}; {len(repeated)} cases equal bit by bit when repeated"
    return outcome(faults, {"cases": compared, "repeated": [str(case) for case in repeated]}, summary)


def graph(settings: Settings) -> Outcome:
    """Captures the ops in CUDA graphs and compares replays on new operands with plain calls."""
    faults: list[str] = []
    cases = list(every_variant(((200,) * 64, (4096,) * 2), (torch.float32, torch.bfloat16)))
    for case in cases:
        captured, fresh = case.operands("cuda", 0), case.operands("cuda", 1)
        expected = case.results(fresh)
        try:
            torch.cuda.set_sync_debug_mode("error")
            case.results(fresh)
        except RuntimeError as error:
            faults.append(f"{case}: waits for the device: {error}")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        try:
            replayed = replay(case, captured, fresh)
        except RuntimeError as error:
            faults.append(f"{case}: {error}")
            break  # a failed capture leaves the context unusable
        if names := differing(expected, replayed):
            faults.append(f"{case}: the replay differs in {', '.join(names)}")
    summary = f"{len(cases)} cases equal bit by bit when replayed on new operands"
    return outcome(faults, {"cases": [str(case) for case in cases]}, summary)


def sanitize_target(device: str = "cuda", dtypes: Sequence[torch.dtype] = REAL_DTYPES) -> int:
    """Runs forward and backward of every kernel at small sizes; returns the number of cases."""
    cases = [
        case
        for op in CASES
        for dtype in op.dtypes
        if dtype in dtypes or dtype.is_complex
        for case in op.small(dtype)
    ]
    for case in cases:
        case.results(case.operands(device))
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{SANITIZED} {len(cases)} forward and backward passes", flush=True)
    return len(cases)
