"""The kernels' tests for a GPU, which CMake builds where there is nvcc, are C++ that compiles."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from python_tests.support.simt import ROOT, run

sys.path.append(str(ROOT))
from build_backend.toolkit import find_toolkits

OPS = ("gated_rela", "causal_conv1d", "linear_scan", "selective_scan")
SOURCES = ("on_gpu.cpp", "ops_test.cpp", *(f"{op}_test.cpp" for op in OPS))


@pytest.mark.parametrize("source", SOURCES)
def test_compiles(source: str) -> None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    toolkits = find_toolkits()
    if compiler is None or not toolkits:
        pytest.skip("needs a C++ compiler and CUDA's headers: nvcc on PATH, in CUDA_HOME or /usr/local/cuda")
    include = (f"-I{ROOT / 'csrc'}", "-isystem", str(toolkits[0].include_folder))
    run(compiler, "-std=c++17", "-Wall", "-Werror", "-fsyntax-only", *include, ROOT / "csrc/tests" / source)
