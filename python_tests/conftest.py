from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# Files that compile for minutes run first, so that no worker of `pytest -n` is left with them at the end.
SLOW_FOLDERS = ("kernels", "install")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-examples",
        type=int,
        help="random examples of each fuzz test; by default fewer, always the same",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Shares the processors among the workers of `pytest -n`, and separates the compiled graphs of builds.

    A graph in PyTorch's cache calls the gradients of operators as an earlier build declared them.
    """
    library = b"".join(path.read_bytes() for path in sorted((ROOT / "recgrela").glob("_C*")))
    cache = ROOT / "build" / "inductor" / hashlib.sha256(library).hexdigest()[:16]
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(name in item.path.parts for name in SLOW_FOLDERS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives whole files to the workers of `pytest -n`: the tests of a file share what they build."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, with the options of `support.runs`; tests must not change it."""
    from python_tests.support.runs import make_run  # imports every command

    torch.manual_seed(0)
    return make_run(tmp_path_factory.mktemp("runs"), "run")


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fills the memory of torch.empty with NaN, so that a test fails if a kernel skips an element."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of the CPU kernels that this processor can run."""
    from recgrela import _C  # not needed by the tests of builds

    initial = _C.cpu_isa()
    if not _C.set_cpu_isa(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    _C.set_cpu_isa(initial)
