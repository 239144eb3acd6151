"""Steps that run the GPU tests and compute-sanitizer."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from benchmarks.gpu.step import Outcome, Settings, run_logged, tail

CUDA_TESTS = (
    *("python_tests/ops", "python_tests/training/test_step.py", "python_tests/models/test_every_model.py"),
    *("-m", "gpu"),
)
SANITIZERS = {
    "memcheck": r"ERROR SUMMARY: (\d+) error",
    "racecheck": r"RACECHECK SUMMARY: (\d+) hazard",
}
SANITIZED = "sanitize target:"  # starts the last line that `sanitize_target` prints


def read_junit(path: Path) -> dict[str, int]:
    """Counts of a JUnit report."""
    root = ElementTree.parse(path).getroot()
    suites = [root] if root.tag == "testsuite" else list(root.iter("testsuite"))

    def total(name: str) -> int:
        return sum(int(suite.get(name, 0)) for suite in suites)

    bad = {"failed": total("failures"), "errors": total("errors"), "skipped": total("skipped")}
    return {"passed": total("tests") - sum(bad.values()), **bad}


def judge_tests(counts: dict[str, int], code: int | None) -> tuple[str, str]:
    """Status and summary; it is a failure if no test ran."""
    summary = ", ".join(f"{count} {name}" for name, count in counts.items())
    if counts["passed"] + counts["failed"] + counts["errors"] == 0:
        return "failed", f"no test for CUDA ran ({summary})"
    return ("passed" if code == 0 else "failed"), summary


def tests(settings: Settings) -> Outcome:
    """Runs the tests that need a GPU."""
    report = settings.logs / "tests.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CUDA_TESTS]
    code, output = run_logged([*command, f"--junitxml={report}"], settings.limit - 10)
    details: dict[str, Any] = {"selection": " ".join(CUDA_TESTS), "exit_code": code, "tail": tail(output, 40)}
    if "No module named pytest" in output:
        return "failed", "pytest is not installed: pip install -e '.[test]'", details
    if not report.exists():
        why = "out of time" if code is None else f"pytest left no report, exit code {code}"
        return "failed", why, details
    counts = read_junit(report)
    status, summary = judge_tests(counts, code)
    return status, summary, details | {"counts": counts}


def find_sanitizer() -> str | None:
    """Finds compute-sanitizer on PATH, in CUDA_HOME or in /usr/local/cuda."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    places = [Path(home, "bin", "compute-sanitizer") for home in homes if home]
    found = (str(place) for place in places if os.access(place, os.X_OK))
    return shutil.which("compute-sanitizer") or next(found, None)


def judge_sanitizer(tool: str, code: int | None, output: str) -> str:
    """Describes a fault; "" if there is none."""
    if code is None:
        return "out of time"
    summary = re.search(SANITIZERS[tool], output)
    if summary is None:
        return f"no summary, exit code {code}"
    if summary[1] != "0":
        return f"{summary[1]} found"
    if SANITIZED not in output:
        return f"the program ended early, exit code {code}"
    return "" if code == 0 else f"exit code {code}"


def sanitizer(settings: Settings) -> Outcome:
    """Runs `sanitize_target` under compute-sanitizer's memcheck and racecheck."""
    program = find_sanitizer()
    if program is None:
        return "skipped", "compute-sanitizer is not installed", {}
    details: dict[str, Any] = {"program": program}
    deadline = time.monotonic() + settings.limit - 10
    target = [sys.executable, "-m", "benchmarks.gpu.gpu_check", "--sanitize-target"]
    # Without PyTorch's caching allocator every tensor is an allocation, whose bounds the sanitizer checks.
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for i, tool in enumerate(SANITIZERS):
        seconds = (deadline - time.monotonic()) / (len(SANITIZERS) - i)
        options = ["--tool", tool, "--kernel-name", "kernel_substring=recgrela", "--error-exitcode", "9"]
        began = time.monotonic()
        code, output = run_logged([program, *options, *target], seconds, env)
        wrong = judge_sanitizer(tool, code, output)
        details[tool] = {"fault": wrong, "seconds": time.monotonic() - began, "tail": tail(output)}
        settings.save(details)
    findings = [f"{tool}: {details[tool]['fault'] or 'clean'}" for tool in SANITIZERS]
    status = "failed" if any(details[tool]["fault"] for tool in SANITIZERS) else "passed"
    return status, ", ".join(findings), details
