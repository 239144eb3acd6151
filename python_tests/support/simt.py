"""Builds csrc/tests with CMake, in build/simt."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

from python_tests.support.project import ROOT

BUILD = ROOT / "build" / "simt"


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Runs a command and returns its output; the test fails with the output unless the exit code is 0."""
    result = subprocess.run(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 0, f"{shlex.join(map(str, command))}\n{result.stdout[-8000:]}"
    return result.stdout


@cache
def has_sanitizers() -> bool:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.cpp"
        source.write_text("int main() {}\n")
        flags = ["-fsanitize=address,undefined", "-o", Path(folder) / "empty"]
        return subprocess.run([compiler, source, *flags], capture_output=True).returncode == 0


def program(name: str) -> str | None:
    """Finds a program on PATH or beside this Python."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def skip(why: str) -> NoReturn:
    """Skips the test; fails it if RECGRELA_REQUIRE_SIMT is set."""
    if os.environ.get("RECGRELA_REQUIRE_SIMT"):
        pytest.fail(why)
    pytest.skip(why)


def build_simt(*targets: str, **options: str | Path) -> Path:
    """Builds targets, or all of them, and returns the build folder; skips the test if a tool is missing."""
    cmake, ninja = program("cmake"), program("ninja")
    if cmake is None:
        skip("needs cmake: pip install cmake")
    if not has_sanitizers():
        skip("needs a C++ compiler with AddressSanitizer and UBSan")
    options = {"RECGRELA_CUDA": "OFF", "RECGRELA_TESTS": "ON", "RECGRELA_SANITIZE": "ON"} | options
    settings = [f"-D{name}={value}" for name, value in options.items()]
    jobs = os.environ.get("MAX_JOBS") or str(min(4, os.cpu_count() or 1))
    BUILD.parent.mkdir(exist_ok=True)
    with BUILD.with_suffix(".lock").open("w") as lock:  # the workers of `pytest -n` share the folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        if ninja and not (BUILD / "CMakeCache.txt").exists():
            settings += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        run(cmake, "-S", ROOT, "-B", BUILD, *settings)
        run(cmake, "--build", BUILD, "--parallel", jobs, *(("--target", *targets) if targets else ()))
    return BUILD
