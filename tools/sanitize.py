"""Runs tests of the CPU operators on a library that is built with AddressSanitizer and UBSan.

python -m tools.sanitize                  builds the library in build/sanitized and runs python_tests/ops
python -m tools.sanitize ARGUMENTS        the same with arguments of pytest, such as -k gated_rela or -n 2

Needs GCC. The first build takes minutes, later ones compile only what has changed. A finding ends the
process: the sanitizer's report and the traceback of the test are printed, and the exit status is 1. Leaks are
not reported, because Python and PyTorch keep memory that they never free.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "sanitized"
REPORT = "report"  # files report.PID
LIBRARY = (
    "RECGRELA_SANITIZED_LIBRARY"  # the environment variable by which `pytest_load_initial_conftests` finds it
)


def runtimes() -> list[str]:
    """The libraries to load before Python: AddressSanitizer's, and C++'s, whose functions it replaces.

    Raises:
        SystemExit: the compiler has no AddressSanitizer of its own that can be loaded.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    found = []
    for name in ("libasan.so", "libstdc++.so"):
        try:
            path = subprocess.check_output([*compiler, f"-print-file-name={name}"], text=True).strip()
        except OSError as error:
            raise SystemExit(
                f"sanitize: {compiler[0]} does not run ({error}); set CXX to GCC's g++"
            ) from error
        if not Path(path).is_absolute():
            raise SystemExit(f"sanitize: {compiler[0]} has no {name}; install GCC and set CXX to its g++")
        found.append(os.path.realpath(path))
    return found


def environment() -> dict[str, str]:
    """The variables of a process in which sanitizers watch the libraries that are built with them."""
    # abort: Python prints the traceback of the test. null: tests ask for more memory than there is.
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes()),
        "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "abort_on_error=1:print_stacktrace=1",
    }


def build() -> Path:
    """Builds the library, without CUDA; returns its path.

    Raises:
        SystemExit: the build fails.
    """
    command = [sys.executable, "setup.py", "build_ext", "--build-temp", str(FOLDER / "objects")]
    variables = {**os.environ, "RECGRELA_CUDA": "0", "RECGRELA_SANITIZE": "1"}
    done = subprocess.run([*command, "--build-lib", str(FOLDER)], cwd=ROOT, env=variables, check=False)
    libraries = sorted((FOLDER / "recgrela").glob("_C*.so"))
    if done.returncode or not libraries:
        raise SystemExit("sanitize: the build failed; its messages are above")
    return libraries[0]


def pytest_load_initial_conftests() -> None:
    """Loads the sanitized library as recgrela._C, before a test imports recgrela: this file is a plugin."""
    import torch  # noqa: F401  its libraries must be loaded before ours

    spec = importlib.util.spec_from_file_location("recgrela._C", os.environ[LIBRARY])
    assert spec is not None and spec.loader is not None
    sys.modules["recgrela._C"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def main(arguments: Sequence[str]) -> int:
    """Builds the library and runs pytest with `arguments`; returns the exit status."""
    variables = {**environment(), LIBRARY: str(build())}
    # pytest's own capture of file descriptors would lose the report of a sanitizer.
    command = [sys.executable, "-m", "pytest", "-p", "tools.sanitize", "--capture=sys", *arguments]
    if not any((ROOT / argument.split("::")[0]).exists() for argument in arguments):
        command.append("python_tests/ops")
    status = subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode
    if status < 0:
        print("sanitize: the process of the tests ended; the report is above", file=sys.stderr)
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
