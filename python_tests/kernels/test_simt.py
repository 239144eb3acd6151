"""The CUDA sources on the CPU, thread by thread under sanitizers, against the CPU kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from python_tests.support.simt import ROOT, build_simt, program, run

OPS = sorted(path.stem.removesuffix("_test") for path in (ROOT / "csrc/tests").glob("*_test.cpp"))


@pytest.fixture(scope="module")
def build() -> Path:
    return build_simt("simt_selftest", "ops_test")


@pytest.mark.parametrize("test", ["simt_selftest", *OPS])
def test_kernels(build: Path, test: str) -> None:
    run(program("ctest") or "ctest", "--output-on-failure", "--no-tests=error", "-R", f"^{test}$", cwd=build)


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize(
    "op, dtype",
    [
        ("embedding/", ""),
        ("gated_rela/", "bfloat16"),
        ("gated_rela_last/", "bfloat16"),
        ("linear_cross_entropy/", "bfloat16"),
        ("selective_scan/", "bfloat16"),
    ],
)
def test_any_number_of_multiprocessors(build: Path, op: str, dtype: str, count: int) -> None:
    """Launches of these operators divide work by the number of multiprocessors, 4 in the other tests."""
    run(build / "ops_test", "--multiprocessors", str(count), op, dtype)
