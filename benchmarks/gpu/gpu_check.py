"""Builds, tests, checks and measures recgrela on an NVIDIA GPU, in under 8 minutes, without network.

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.gpu.steps import ROOT, Outcome, Settings, gpu_problem, tail

TOTAL_SECONDS = 465.0
EXIT_FAILED, EXIT_NO_GPU, EXIT_STOPPED = 1, 2, 130
COLOURS = {"passed": "green", "failed": "red", "skipped": "yellow"}


@dataclass(frozen=True)
class Step:
    """`function`: module.name; `limit`: most seconds; `reserve`: seconds that earlier steps leave it."""

    name: str
    function: str
    limit: float
    reserve: float

    def load(self) -> Callable[[Settings], Outcome]:
        """The function; what it imports may need the build."""
        module, _, name = self.function.partition(".")
        return getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)


STEPS = (
    Step("facts", "steps.facts", 45, 20),
    Step("build", "steps.build", 180, 40),
    Step("tests", "steps.tests", 100, 40),
    Step("reference", "numerics.reference", 60, 25),
    Step("sanitizer", "steps.sanitizer", 100, 40),
    Step("benchmarks", "numerics.benchmarks", 180, 100),
    Step("graph", "numerics.graph", 40, 20),
    Step("training", "steps.training", 60, 25),
)


def allowance(step: Step, later: Sequence[Step], left: float) -> float:
    """Seconds for a step, of those left, such that the later ones keep their reserves."""
    return max(0.0, min(step.limit, left - sum(other.reserve for other in later)))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """The old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def run_here(name: str, settings: Settings) -> int:
    """Run a step in this process and leave its result in the folder of logs."""
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


def run_apart(name: str, settings: Settings) -> dict[str, Any]:
    """Run a step in a process of its own, ended with its children at the limit; returns its result."""
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
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    result = read_result(path, code, settings.limit)
    if result["status"] == "failed":
        result["tail"] = tail(log.read_text(errors="replace"), 25)
    return {"step": name, "seconds": round(time.monotonic() - began, 1), **result}


def read_result(path: Path, code: int | None, limit: float) -> dict[str, Any]:
    """What a step left; one that did not come to its end failed, and keeps what it had found."""
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


def steps_table(steps: Sequence[dict[str, Any]]) -> Table:
    """A line for each step."""
    table = Table(title="gpu_check")
    for name in ("step", "result"):
        table.add_column(name, no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    table.add_column("what was seen", overflow="fold")
    for step in steps:
        colour = COLOURS[step["status"]]
        status = f"[{colour}]{step['status']}[/]"
        table.add_row(step["step"], status, f"{step['seconds']:.1f}", escape(step["summary"]))
    return table


def peer_text(peer: dict[str, Any] | None) -> str:
    """A peer's times relative to ours, forward and backward, or why there are none."""
    if peer is None:
        return "-"
    if "ratio" not in peer:
        return escape(peer.get("note", "-"))
    return f"{peer['forward_ratio']:.2f} / {peer['backward_ratio']:.2f}"


def megabytes(size: float | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.0f}"


def benchmark_table(details: dict[str, Any]) -> Table:
    """A line for each case: times, share of the floor, and how many times longer each peer takes."""
    table = Table(
        title=f"forward / backward; the floor: its bytes at a copy's {details['copy_gb_s']:,.0f} GB/s",
        caption="peers: how many times longer than ours, forward / backward",
    )
    for name in ("case", "us", "GB/s", "share of floor", "peak MB", "eager", "torch.compile", "packages"):
        table.add_column(name, overflow="fold")
    for case in details["cases"]:
        if "ours" not in case:
            table.add_row(case["case"], f"{case['status']}: {escape(case.get('fault', ''))}")
            continue
        ours, peers = case["ours"], case["peers"]

        def pair(key: str, scale: float = 1.0, ours: dict[str, Any] = ours) -> str:
            return f"{scale * ours[f'forward_{key}']:,.0f} / {scale * ours[f'backward_{key}']:,.0f}"

        faster = case.get("faster_eager")
        plain = [name for name in peers if name.startswith("eager")]
        best = peers.get(faster or next(iter(plain), ""))
        others = [name for name in peers if name not in (*plain, "torch.compile")]
        memory = megabytes(ours["peak_bytes"])
        if best is not None and best.get("peak_bytes") is not None:
            memory += f" (eager {megabytes(best['peak_bytes'])})"
        table.add_row(
            case["case"],
            pair("us"),
            pair("gb_s"),
            pair("share", 100) + " %",
            memory,
            peer_text(best) + (f" ({faster.removeprefix('eager ')})" if faster else ""),
            peer_text(peers.get("torch.compile")),
            "\n".join(f"{name}: {peer_text(peers[name])}" for name in others) or "-",
        )
    return table


def show(steps: Sequence[dict[str, Any]], console: Console) -> None:
    """The benchmarks' table, the tails of failed steps, and one line for each step."""
    for step in steps:
        if step["step"] == "benchmarks" and step["details"].get("cases"):
            console.print(benchmark_table(step["details"]))
        if step.get("tail"):
            console.print(f"-- {step['step']}: the end of its log", markup=False)
            console.print(step["tail"], markup=False, highlight=False)
    console.print(steps_table(steps))


def check_all(settings: Settings, skip: Sequence[str], console: Console) -> int:
    """Run the steps in order, each whatever the others did, and report; returns the exit code."""
    settings.logs.mkdir(parents=True, exist_ok=True)
    (settings.logs / ".gitignore").write_text("*\n")
    path = settings.out / "gpu_check.json"
    ends = time.monotonic() + TOTAL_SECONDS
    done: list[dict[str, Any]] = []
    report: dict[str, Any] = {"quick": settings.quick, "complete": False, "steps": done}
    stopped = False
    try:
        for i, step in enumerate(STEPS):
            if step.name in skip:
                done.append(skipped(step.name, "not asked for"))
                continue
            later = [other for other in STEPS[i + 1 :] if other.name not in skip]
            limit = allowance(step, later, ends - time.monotonic())
            console.print(f"{step.name} (at most {limit:.0f} s) ...")
            done.append(run_apart(step.name, replace(settings, limit=limit)))
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
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--skip", nargs="+", choices=names, default=[], metavar="STEP", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="smaller sizes, no torch.compile")
    parser.add_argument(
        "--sanitize-target",
        action="store_true",
        help="only run the ops once at small sizes, for compute-sanitizer",
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
        return run_here(args.run_step, settings)
    return check_all(settings, args.skip, Console())


if __name__ == "__main__":
    sys.exit(main())
