"""Checks that the compilers work, and decides how many run at a time, before the first file is compiled."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from build_backend.architectures import Architecture
from build_backend.errors import CPU_ONLY, BuildError
from build_backend.toolkit import Toolkit

# Bytes. The hungriest C++ file takes .35 GB, nvcc .2 GB for each of up to four architectures at a time.
MEMORY_PER_JOB = 1 << 30
CPP_PROBE = """
#include <Python.h>
#include <optional>
int main() { return *std::optional<int>(0); }
"""
CUDA_PROBE = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
__global__ void probe() {}
int main() { probe<<<1, 1>>>(); }
"""


def check_cxx() -> None:
    """Compiles C++17 that includes Python.h with the compiler that torch will call: CXX, or c++."""
    if sys.platform == "win32":
        raise BuildError("this is Windows", "build in WSL 2, with its own Python")
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if shutil.which(compiler[0]) is None:
        raise BuildError(
            f"there is no C++ compiler {compiler[0]}",
            "install GCC 9 or Clang 12 or newer (Debian and Ubuntu: apt-get install g++), or name one in CXX",
        )
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        raise BuildError(
            f"there is no Python.h in {include}",
            f"install the headers of {sys.executable} (on Debian and Ubuntu: apt-get install {name}-dev; "
            f"on Fedora: dnf install {name}-devel)",
        )
    failure = _compile([*compiler, "-std=c++17", "-fsyntax-only", f"-I{include}"], CPP_PROBE, "probe.cpp")
    if failure:
        raise BuildError(
            f"{shlex.join(compiler)} does not compile C++17:\n{failure}",
            "take GCC 9 or Clang 12 or newer (CXX names it)",
        )


def check_nvcc(toolkit: Toolkit, archs: Sequence[Architecture]) -> None:
    """Compiles an empty kernel for all architectures: nvcc goes with its parts and the C++ compiler."""
    host = ["-ccbin", os.environ["CC"]] if os.environ.get("CC") else []  # as torch calls it
    flags = [flag for arch in archs for flag in arch.flags]
    failure = _compile([str(toolkit.nvcc), "-std=c++17", *host, *flags, "-c"], CUDA_PROBE, "probe.cu")
    if failure:
        names = ", ".join(map(str, archs))
        raise BuildError(
            f"{toolkit} does not compile an empty kernel for {names}:\n{failure}",
            f"its words say why; CC and CXX name another C++ compiler, CUDA_HOME another toolkit; {CPU_ONLY}",
        )


def _compile(command: list[str], source: str, name: str) -> str | None:
    """What the compiler says if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_text(source)
        done = subprocess.run(
            [*command, name], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    return (done.stdout.strip() or f"exit code {done.returncode}") if done.returncode else None


def choose_jobs() -> int:
    """MAX_JOBS, or as many as there are processors and memory for."""
    if text := os.environ.get("MAX_JOBS"):
        if not text.isdigit() or int(text) == 0:
            raise BuildError(f"MAX_JOBS={text}", "set it to a number of 1 or more, or unset it")
        return int(text)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = available_memory()
    return processors if memory is None else max(1, min(processors, memory // MEMORY_PER_JOB))


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that may still be taken, by the system and the control group; None where neither says."""
    limits = []
    meminfo = root / "proc/meminfo"
    if meminfo.exists() and (match := re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())):
        limits.append(1024 * int(match[1]))
    group = root / "sys/fs/cgroup"
    for limit, used, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        if (group / limit).exists() and (group / used).exists():
            text = (group / limit).read_text().strip()
            if text.isdigit():  # not "max"
                stats = (group / stat).read_text() if (group / stat).exists() else ""
                cache = re.search(rf"^{cached} (\d+)$", stats, re.M)  # given back when it is needed
                limits.append(int(text) - int((group / used).read_text()) + int(cache[1] if cache else 0))
    return max(0, min(limits)) if limits else None
