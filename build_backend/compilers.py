"""Checks the compilers and chooses the number of parallel jobs before the first file is compiled."""

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

# Bytes. The largest C++ file needs 0.35 GB; nvcc needs 0.2 GB for each of up to four architectures in
# parallel.
MEMORY_PER_JOB = 1 << 30
# Flags of a compilation and of a link. A finding ends the process.
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
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


def sanitize() -> bool:
    """Returns the value of RECGRELA_SANITIZE as a bool, False if it is not set.

    Raises:
        BuildError: It has another value.
    """
    text = os.environ.get("RECGRELA_SANITIZE", "")
    if text not in ("", "0", "1"):
        raise BuildError(
            f"RECGRELA_SANITIZE={text} is not 0 or 1",
            "1 builds with AddressSanitizer and UBSan; python -m tools.sanitize does, and runs tests",
        )
    return text == "1"


def check_cxx() -> None:
    """Compiles a C++17 file that includes Python.h, with the compiler that torch uses: CXX, or c++.

    Raises:
        BuildError: The compiler or the headers are missing, or compilation fails.
    """
    if sys.platform == "win32":
        raise BuildError("Windows is not supported", "build in WSL 2, with a Python of its own")
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if shutil.which(compiler[0]) is None:
        raise BuildError(
            f"no C++ compiler {compiler[0]} was found",
            "install GCC 9 or Clang 12 or newer (Debian and Ubuntu: apt-get install g++), or set CXX to one",
        )
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        raise BuildError(
            f"no Python.h was found in {include}",
            f"install the headers of {sys.executable} (on Debian and Ubuntu: apt-get install {name}-dev; "
            f"on Fedora: dnf install {name}-devel)",
        )
    failure = _compile([*compiler, "-std=c++17", "-fsyntax-only", f"-I{include}"], CPP_PROBE, "probe.cpp")
    if failure:
        raise BuildError(
            f"{shlex.join(compiler)} does not compile C++17:\n{failure}",
            "set CXX to GCC 9 or Clang 12 or newer",
        )


def check_nvcc(toolkit: Toolkit, archs: Sequence[Architecture]) -> None:
    """Compiles an empty kernel for all architectures, to check that nvcc works with the C++ compiler.

    Raises:
        BuildError: Compilation fails.
    """
    host = ["-ccbin", os.environ["CC"]] if os.environ.get("CC") else []  # as torch does
    flags = [flag for arch in archs for flag in arch.flags]
    failure = _compile([str(toolkit.nvcc), "-std=c++17", *host, *flags, "-c"], CUDA_PROBE, "probe.cu")
    if failure:
        names = ", ".join(map(str, archs))
        raise BuildError(
            f"{toolkit} does not compile an empty kernel for {names}:\n{failure}",
            f"see its message; use another C++ compiler (CC and CXX) or toolkit (CUDA_HOME); {CPU_ONLY}",
        )


def _compile(command: list[str], source: str, name: str) -> str | None:
    """Runs a compiler on a source file; returns its message if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_text(source)
        done = subprocess.run(
            [*command, name], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    return (done.stdout.strip() or f"exit code {done.returncode}") if done.returncode else None


def choose_jobs() -> int:
    """Returns MAX_JOBS, or the number of jobs that the processors and the memory allow."""
    if text := os.environ.get("MAX_JOBS"):
        if not text.isdigit() or int(text) == 0:
            raise BuildError(f"MAX_JOBS={text} is not a positive number", "set it to 1 or more, or unset it")
        return int(text)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = available_memory()
    return processors if memory is None else max(1, min(processors, memory // MEMORY_PER_JOB))


def available_memory(root: Path = Path("/")) -> int | None:
    """Returns the bytes still available in the system and the control group; None if both are unknown."""
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
                cache = re.search(rf"^{cached} (\d+)$", stats, re.M)  # is freed on demand
                limits.append(int(text) - int((group / used).read_text()) + int(cache[1] if cache else 0))
    return max(0, min(limits)) if limits else None
