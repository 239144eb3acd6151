"""tools.sanitize: errors of a library that is built and loaded as the operators' library end the process."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build_backend.compilers import SANITIZE
from tools.sanitize import environment

CODE = """
#include <stdexcept>
extern "C" int element(const int* x, int i) { return x[i]; }
extern "C" int last_of_new(int n, int i) {
  int* const x = new int[n]();
  const int found = x[i];
  delete[] x;
  return found;
}
extern "C" int shifted(int bits) { return 1 << bits; }
extern "C" int caught() {  // an exception passes through the sanitizer's functions
  try {
    throw std::runtime_error("text");
  } catch (const std::exception&) {
    return 7;
  }
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no C++ compiler {compiler[0]}")
    try:
        environment()
    except SystemExit as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("sanitize")
    (folder / "wrong.cpp").write_text(CODE)
    command = [*compiler, "-shared", "-fPIC", "-g1", *SANITIZE, "wrong.cpp", "-o", "wrong.so"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "wrong.so"


@pytest.mark.parametrize(
    "call, expected",
    [
        ("last_of_new(4, 3)", ""),
        ("last_of_new(4, 4)", "heap-buffer-overflow"),
        ("shifted(31)", ""),
        ("shifted(33)", "shift exponent 33 is too large"),
        ("caught()", ""),
    ],
)
def test_errors_end_the_process_with_a_report(call: str, expected: str, library: Path) -> None:
    code = f"import ctypes; print(ctypes.CDLL({str(library)!r}).{call})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if not expected:
        assert done.returncode == 0 and not done.stderr
    else:
        assert done.returncode != 0 and expected in done.stderr and "wrong.cpp" in done.stderr
