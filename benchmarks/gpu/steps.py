"""The steps of gpu_check.py that run commands; gpu_numerics has the others.

Each runs in a process of its own and returns (status, summary, details).
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
# What chooses the tests that need a GPU.
CUDA_TESTS = ("python_tests/ops", "python_tests/training/test_step.py", "-m", "gpu")
SANITIZERS = {
    "memcheck": r"ERROR SUMMARY: (\d+) error",
    "racecheck": r"RACECHECK SUMMARY: (\d+) hazard",
}
SANITIZED = "sanitize target:"  # begins the last line of that command's output
# First epochs on two devices differ by their random streams alone.
LOSS_TOLERANCE = 0.05

Outcome = tuple[str, str, dict[str, Any]]


@dataclass(frozen=True)
class Settings:
    """Of one step: the report's folder, seconds it may take, smaller sizes, who takes parts of results."""

    out: Path
    limit: float = 60.0
    quick: bool = False
    save: Callable[[dict[str, Any]], None] = lambda details: None

    @property
    def logs(self) -> Path:
        return self.out / "logs"


def gpu_problem() -> str:
    """Why no NVIDIA GPU can be used; "" if one can."""
    if torch.version.cuda is None:
        return f"PyTorch sees no GPU: torch {torch.__version__} is not built for CUDA"
    if not torch.cuda.is_available():
        return (
            f"PyTorch sees no GPU: torch {torch.__version__} is built for CUDA {torch.version.cuda}, so look "
            "at the driver (nvidia-smi) and at CUDA_VISIBLE_DEVICES"
        )
    return ""


def tail(text: str, lines: int = 15) -> str:
    return "\n".join(text.splitlines()[-lines:])


def text_of(command: Sequence[str], seconds: float = 20.0) -> str:
    """A command's output, or the error as text in brackets."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=seconds)
        return done.stdout.strip()
    except subprocess.CalledProcessError as error:
        return f"[exit code {error.returncode}: {tail(error.stderr, 3)}]"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"[{error}]"


def run_logged(
    command: Sequence[str], seconds: float, env: dict[str, str] | None = None
) -> tuple[int | None, str]:
    """Exit code (None: out of time) and output, which is also printed."""
    print("+", " ".join(command), flush=True)
    lines: list[str] = []
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=os.environ | (env or {})
        )
        try:
            code: int | None = process.wait(timeout=max(seconds, 1))
        except subprocess.TimeoutExpired:
            code = None
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        file.seek(0)
        lines = file.read().splitlines()
    output = "\n".join(lines)
    print(output, flush=True)
    return code, output


def environment() -> Any:
    """What `python -m recgrela.env` says, or why it does not."""
    command = [sys.executable, "-m", "recgrela.env", "--json"]  # the exit code says no more than the text
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        return f"[{error}]"
    except ValueError:
        return f"[exit code {done.returncode}: {tail(done.stderr, 3)}]"


def facts(settings: Settings) -> Outcome:
    """What the numbers are of."""
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": text_of(["git", "describe", "--always", "--dirty"]),
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "driver": text_of(query),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "recgrela.env": environment(),
    }
    summary = (
        f"{found['gpu']}, {found['multiprocessors']} SMs, {properties.total_memory / 2**30:.0f} GiB, driver "
        f"{found['driver']}, torch {found['torch']}, CUDA {found['cuda']}, commit {found['commit']}"
    )
    return "passed", summary, found


def cuda_kernels() -> str:
    """ "yes", "no", or why recgrela cannot be imported, in a fresh process."""
    question = "from recgrela.ops import has_kernels; print('yes' if has_kernels('cuda') else 'no')"
    return text_of([sys.executable, "-c", question], 60)


def build(settings: Settings) -> Outcome:
    """Build in place, without network; what is up to date is not built again."""
    details: dict[str, Any] = {"cuda_kernels_before": cuda_kernels()}
    major, minor = torch.cuda.get_device_capability()
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or f"{major}.{minor}"
    began = time.monotonic()
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    code, output = run_logged(command, settings.limit - 15, {"TORCH_CUDA_ARCH_LIST": archs})
    seconds = time.monotonic() - began
    details |= {"TORCH_CUDA_ARCH_LIST": archs, "build_seconds": seconds, "exit_code": code}
    if code != 0:
        why = "out of time" if code is None else f"exit code {code}"
        return "failed", f"{' '.join(command[1:])}: {why}", details | {"tail": tail(output)}
    after = cuda_kernels()
    details |= {"cuda_kernels_after": after, "recgrela.env": environment()}
    if after != "yes":
        return "failed", f"built in {seconds:.0f} s, but CUDA kernels: {after}", details
    return "passed", f"built in {seconds:.0f} s for {archs}", details


def read_junit(path: Path) -> dict[str, int]:
    """Counts of a JUnit report."""
    root = ElementTree.parse(path).getroot()
    suites = [root] if root.tag == "testsuite" else list(root.iter("testsuite"))

    def total(name: str) -> int:
        return sum(int(suite.get(name, 0)) for suite in suites)

    bad = {"failed": total("failures"), "errors": total("errors"), "skipped": total("skipped")}
    return {"passed": total("tests") - sum(bad.values()), **bad}


def judge_tests(counts: dict[str, int], code: int | None) -> tuple[str, str]:
    """Status and summary; none run is a failure."""
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    if counts["passed"] + counts["failed"] + counts["errors"] == 0:
        return "failed", f"no test for CUDA ran ({said})"
    return ("passed" if code == 0 else "failed"), said


def tests(settings: Settings) -> Outcome:
    """The tests that need a GPU."""
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
    """compute-sanitizer on PATH, in CUDA_HOME or in the usual place."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    places = [Path(home, "bin", "compute-sanitizer") for home in homes if home]
    found = (str(place) for place in places if os.access(place, os.X_OK))
    return shutil.which("compute-sanitizer") or next(found, None)


def judge_sanitizer(tool: str, code: int | None, output: str) -> str:
    """What is wrong, "" if nothing."""
    if code is None:
        return "out of time"
    summary = re.search(SANITIZERS[tool], output)
    if summary is None:
        return f"no summary, exit code {code}"
    if summary[1] != "0":
        return f"{summary[1]} found"
    if SANITIZED not in output:
        return f"the program did not come to its end, exit code {code}"
    return "" if code == 0 else f"exit code {code}"


def sanitizer(settings: Settings) -> Outcome:
    """compute-sanitizer's memcheck and racecheck over `sanitize_target`."""
    program = find_sanitizer()
    if program is None:
        return "skipped", "compute-sanitizer is not installed", {}
    details: dict[str, Any] = {"program": program}
    ends = time.monotonic() + settings.limit - 10
    target = [sys.executable, "-m", "benchmarks.gpu.gpu_check", "--sanitize-target"]
    # Without PyTorch's pool every tensor has an allocation of its own, whose ends are guarded.
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for i, tool in enumerate(SANITIZERS):
        seconds = (ends - time.monotonic()) / (len(SANITIZERS) - i)
        options = ["--tool", tool, "--kernel-name", "kernel_substring=recgrela", "--error-exitcode", "9"]
        began = time.monotonic()
        code, output = run_logged([program, *options, *target], seconds, env)
        wrong = judge_sanitizer(tool, code, output)
        details[tool] = {"fault": wrong, "seconds": time.monotonic() - began, "tail": tail(output)}
        settings.save(details)
    said = [f"{tool}: {details[tool]['fault'] or 'clean'}" for tool in SANITIZERS]
    status = "failed" if any(details[tool]["fault"] for tool in SANITIZERS) else "passed"
    return status, ", ".join(said), details


def train_once(
    device: str, epochs: int, seconds: float, **more: object
) -> tuple[int | None, str, list[dict[str, Any]]]:
    """Exit code, output, and the epochs of metrics.jsonl of a run on the built-in set."""
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as folder:
        options = {"device": device, "epochs": epochs, "output": folder, "name": "run", "tensorboard": "off"}
        options |= {"lr": 1e-3, "lr_decay": "none", "warmup_steps": 0}  # whatever the number of epochs
        options |= more
        command = [sys.executable, "-m", "recgrela.train"]
        command += [f"--train.{name}={value}" for name, value in options.items()]
        code, output = run_logged(command, seconds)
        metrics = Path(folder, "run", "metrics.jsonl")
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        records = [json.loads(line) for line in lines]
        return code, output, [record for record in records if record["kind"] == "epoch"]


def judge_training(records: list[dict[str, Any]], others: dict[str, list[dict[str, Any]]]) -> tuple[str, str]:
    """Status and summary of the epochs on the GPU, and of first epochs made in other ways, by name."""
    losses = [record["loss"] for record in records]
    rate = max(record["targets_per_second"] for record in records)
    said = f"loss {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} epochs, {rate:,.0f} targets/s"
    fine = all(map(math.isfinite, losses)) and (len(losses) == 1 or losses[-1] < losses[0])
    for name, other in others.items():
        epoch = min(len(other), len(losses)) - 1  # the last that both have
        away = abs(losses[epoch] - other[epoch]["loss"]) / other[epoch]["loss"]
        said += f"; epoch {epoch + 1} {name} {other[epoch]['loss']:.4f} ({100 * away:.1f}% away), "
        said += f"{max(record['targets_per_second'] for record in other):,.0f} targets/s"
        fine = fine and away <= LOSS_TOLERANCE
    return ("passed" if fine else "failed"), said


def training(settings: Settings) -> Outcome:
    """A few epochs on the built-in set; if there is time also with CUDA graphs, and the first on the CPU."""
    epochs = 2 if settings.quick else 4
    ends = time.monotonic() + settings.limit - 10
    code, output, records = train_once("cuda", epochs, ends - time.monotonic())
    details: dict[str, Any] = {"exit_code": code, "epochs": records, "tail": tail(output)}
    if code != 0 or not records:
        why = "out of time" if code is None else f"exit code {code}"
        return "failed", f"recgrela.train: {why}: {tail(output, 1)}", details
    settings.save(details)
    others: dict[str, list[dict[str, Any]]] = {}
    ways: dict[str, tuple[str, int, dict[str, object]]] = {
        "with CUDA graphs": ("cuda", epochs, {"cuda_graphs": "true"}),
        "on the CPU": ("cpu", 1, {}),
    }
    for name, (device, number, more) in ways.items():
        if ends - time.monotonic() < 20:
            break
        code, output, found = train_once(device, number, ends - time.monotonic(), **more)
        details[name] = {"exit_code": code, "epochs": found, "tail": tail(output)}
        settings.save(details)
        if code:
            return "failed", f"recgrela.train {name}: exit code {code}: {tail(output, 1)}", details
        if found:
            others[name] = found
    return (*judge_training(records, others), details)
