"""Builds, tests, checks and measures recgrela on an NVIDIA GPU, in under 8 minutes, without network.

Each step runs in a process of its own with a time limit; the next steps run even if one fails.

python -m benchmarks.gpu.gpu_check [--out DIR] [--skip STEP ...] [--quick]

Writes DIR/gpu_check.json and DIR/logs/. Exit code 0: no step failed; 1: one did; 2: there is no GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.gpu.machine import gpu_problem
from benchmarks.gpu.report import show, write_json
from benchmarks.gpu.step import ROOT, Outcome, Settings, tail

TOTAL_SECONDS = 465.0
EXIT_FAILED, EXIT_NO_GPU, EXIT_STOPPED = 1, 2, 130


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        function: module.name in benchmarks.gpu.
        limit: seconds that it may take.
        reserve: seconds that earlier steps must leave for it.
    """

    name: str
    function: str
    limit: float
    reserve: float

    def load(self) -> Callable[[Settings], Outcome]:
        """Imports the function; its module may need the build."""
        module, _, name = self.function.partition(".")
        return getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)


# The most important figures come first.
STEPS = (
    Step("facts", "machine.facts", 45, 20),
    Step("build", "machine.build", 180, 40),
    Step("tests", "suites.tests", 120, 40),
    Step("whole_step", "whole_step.whole_step", 120, 60),
    Step("benchmarks", "bench.benchmarks", 180, 80),
    Step("reference", "numerics.reference", 60, 25),
    Step("graph", "numerics.graph", 40, 20),
    Step("training", "training.training", 60, 20),
    Step("sanitizer", "suites.sanitizer", 100, 30),
)


def allowance(step: Step, later: Sequence[Step], left: float) -> float:
    """Seconds for a step such that later steps keep their reserves."""
    return max(0.0, min(step.limit, left - sum(other.reserve for other in later)))


def run_in_process(name: str, settings: Settings) -> int:
    """Runs a step in this process and writes its result to the folder of logs."""
    path = settings.logs / f"{name}.json"

    def save(details: dict[str, Any]) -> None:
        write_json(path, {"status": "running", "details": details})

    step = next(step for step in STEPS if step.name == name)
    try:
        status, summary, details = step.load()(replace(settings, save=save))
    except Exception as error:
        print(traceback.format_exc(), flush=True)
        status, summary, details = "failed", f"{type(error).__name__}: {error}", {}
    write_json(path, {"status": status, "summary": summary, "details": details})
    return 0


def run_in_subprocess(name: str, settings: Settings) -> dict[str, Any]:
    """Runs a step in a process of its own, which is killed with its children when the limit is reached."""
    log, path = settings.logs / f"{name}.log", settings.logs / f"{name}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.gpu_check", "--run-step", name]
    command += ["--out", str(settings.out), "--limit", str(settings.limit)]
    command += ["--quick"] if settings.quick else []
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout=settings.limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):  # children may outlive the step
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    result = read_result(path, code, settings.limit)
    if result["status"] == "failed":
        result["tail"] = tail(log.read_text(errors="replace"), 25)
    return {"step": name, "seconds": round(time.monotonic() - began, 1), **result}


def read_result(path: Path, code: int | None, limit: float) -> dict[str, Any]:
    """The result that a step wrote. A step that did not finish has failed, but keeps its details so far."""
    result: dict[str, Any] = {"status": "running", "summary": "", "details": {}}
    if path.exists():
        result |= json.loads(path.read_text())
    if result["status"] == "running":
        why = f"did not end in {limit:.0f} s" if code is None else f"ended early with exit code {code}"
        result |= {"status": "failed", "summary": why}
    return result


def skipped(name: str, why: str) -> dict[str, Any]:
    return {"step": name, "seconds": 0.0, "status": "skipped", "summary": why, "details": {}}


def exit_code(steps: Sequence[dict[str, Any]]) -> int:
    return EXIT_FAILED if any(step["status"] == "failed" for step in steps) else 0


def check_all(settings: Settings, skip: Sequence[str], console: Console) -> int:
    """Runs all steps in order, writes the report, and returns the exit code."""
    settings.logs.mkdir(parents=True, exist_ok=True)
    (settings.logs / ".gitignore").write_text("*\n")
    path = settings.out / "gpu_check.json"
    deadline = time.monotonic() + TOTAL_SECONDS
    done: list[dict[str, Any]] = []
    report: dict[str, Any] = {"quick": settings.quick, "complete": False, "steps": done}
    stopped = False
    try:
        for i, step in enumerate(STEPS):
            if step.name in skip:
                done.append(skipped(step.name, "by --skip"))
                continue
            later = [other for other in STEPS[i + 1 :] if other.name not in skip]
            limit = allowance(step, later, deadline - time.monotonic())
            console.print(f"{step.name} (at most {limit:.0f} s) ...")
            done.append(run_in_subprocess(step.name, replace(settings, limit=limit)))
            console.print(f"  {done[-1]['status']}: {done[-1]['summary']}", markup=False, highlight=False)
            write_json(path, report)
    except KeyboardInterrupt:
        stopped = True
    report["complete"] = not stopped
    write_json(path, report)
    show(done, console)
    console.print(f"written to {path}", markup=False)
    return EXIT_STOPPED if stopped else exit_code(done)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [step.name for step in STEPS]
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the report and the logs"
    )
    parser.add_argument("--skip", nargs="+", choices=names, default=[], metavar="STEP", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="smaller sizes, no torch.compile")
    parser.add_argument(
        "--sanitize-target",
        action="store_true",
        help="only run the ops once at small sizes, under compute-sanitizer",
    )
    parser.add_argument("--run-step", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=60.0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if problem := gpu_problem():
        print(f"gpu_check: {problem}", file=sys.stderr)
        return EXIT_NO_GPU
    if args.sanitize_target:
        importlib.import_module("benchmarks.gpu.numerics").sanitize_target()
        return 0
    settings = Settings(args.out.resolve(), args.limit, args.quick)
    if args.run_step:
        return run_in_process(args.run_step, settings)
    return check_all(settings, args.skip, Console())


if __name__ == "__main__":
    sys.exit(main())
