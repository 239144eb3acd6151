from __future__ import annotations

from collections.abc import Iterator

import pytest

from recgrela import _C


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of the CPU kernels that this processor can run."""
    initial = _C.cpu_isa()
    if not _C.set_cpu_isa(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    _C.set_cpu_isa(initial)


@pytest.fixture(autouse=True)
def _poisoned(poisoned_memory: None) -> None:
    """Every op test runs on poisoned memory."""
