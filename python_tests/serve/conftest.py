from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from python_tests.support.runs import make_run
from recgrela.inference.recommender import Recommender
from recgrela.store import Store, open_store

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

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


@pytest.fixture
def client(recommender: Recommender, store: Store) -> Iterator[TestClient]:
    from python_tests.serve.clients import client_of  # after the check that its packages are installed

    with client_of(recommender, store) as client:
        yield client


@pytest.fixture(scope="module")
def reader(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client with a stored user; tests must not add events."""
    from python_tests.serve.clients import client_of

    with (
        open_store(tmp_path_factory.mktemp("reader") / "store.sqlite") as store,
        client_of(recommender, store, hosts=("localhost", "127.0.0.1", "::1")) as client,
    ):
        events = [
            {"user": "a/b é", "item": item, "time": t} for t, item in enumerate(recommender.item_ids[:4])
        ]
        assert client.post("/events", json=events).status_code == 200
        yield client
