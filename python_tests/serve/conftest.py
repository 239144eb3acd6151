from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from python_tests.support.runs import make_run
from recgrela.inference.recommender import Recommender
from recgrela.store import Store, open_store

for name in ("fastapi", "uvicorn", "prometheus_client", "httpx"):
    pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small RecGRELA; tests must not change it."""
    return make_run(tmp_path_factory.mktemp("runs"), "served")


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return shutil.copytree(trained_run, tmp_path / "run")


@pytest.fixture(scope="session")
def recommender(trained_run: Path) -> Recommender:
    return Recommender.load(trained_run, device="cpu")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store.sqlite") as store:
        yield store


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models are slower with several threads, and several servers would share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
