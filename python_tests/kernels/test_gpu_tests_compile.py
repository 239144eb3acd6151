"""The kernels' tests for a GPU, which CMake builds if there is nvcc, are valid C++."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from build_backend.toolkit import find_toolkits
from python_tests.support.simt import ROOT, run

SOURCES = sorted(path for path in (ROOT / "csrc/tests").glob("*.cpp") if path.name != "on_simt.cpp")


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_compiles(source: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    toolkits = find_toolkits()
    if compiler is None or not toolkits:
        pytest.skip("needs a C++ compiler and CUDA's headers: nvcc on PATH, in CUDA_HOME or /usr/local/cuda")
    include = (f"-I{ROOT / 'csrc'}", "-isystem", str(toolkits[0].include_folder))
    run(compiler, "-std=c++17", "-Wall", "-Werror", "-fsyntax-only", *include, source)
