"""Steps that describe the machine and build the kernels on it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from datetime import datetime, timezone
from typing import Any

import torch

from benchmarks.gpu.step import ROOT, Outcome, Settings, run_logged, tail, text_of


def gpu_problem() -> str:
    """The reason why PyTorch cannot use an NVIDIA GPU; "" if it can."""
    if torch.version.cuda is None:
        return f"PyTorch finds no GPU: torch {torch.__version__} is not built for CUDA"
    if not torch.cuda.is_available():
        return (
            f"PyTorch finds no GPU: torch {torch.__version__} is built for CUDA {torch.version.cuda}, so "
            "check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES"
        )
    return ""


def environment() -> Any:
    """The report of `python -m recgrela.env`, or its error as text."""
    command = [sys.executable, "-m", "recgrela.env", "--json"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        return f"[{error}]"
    except ValueError:
        return f"[exit code {done.returncode}: {tail(done.stderr, 3)}]"


def facts(settings: Settings) -> Outcome:
    """Describes the GPU and the versions of the software."""
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
    """Reports whether recgrela has CUDA kernels: "yes", "no" or an import error, from a fresh process."""
    question = "from recgrela.ops import has_kernels; print('yes' if has_kernels('cuda') else 'no')"
    return text_of([sys.executable, "-c", question], 60)


def build(settings: Settings) -> Outcome:
    """Builds in place, without network; files that are up to date are not compiled again."""
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
