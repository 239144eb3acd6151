"""Clients of an app in this process, for the tests of HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi.testclient import TestClient

from recgrela.inference.recommender import Recommender
from recgrela.serve.app import create_app
from recgrela.serve.batching import Batcher
from recgrela.serve.engine import Engine
from recgrela.serve.metrics import Metrics
from recgrela.serve.service import Service
from recgrela.store import Store

TOKEN = "0123456789abcdef0123456789abcdef"
URL = "http://localhost"
JSON = {"content-type": "application/json"}


@contextmanager
def client_of(
    recommender: Recommender, store: Store, max_queue: int = 100, **options: Any
) -> Iterator[TestClient]:
    """A client of a running app."""
    metrics = Metrics()
    batcher = Batcher(Engine(recommender, store), metrics, max_batch=16, max_wait=0.0, max_queue=max_queue)
    service = Service(store, batcher, metrics, **options)
    metrics.watch_states(lambda: batcher.engine)
    metrics.set_model(batcher.engine.key, "best")
    with TestClient(create_app(service), base_url=URL, raise_server_exceptions=False) as client:
        yield client


def error_of(response: Any, status: int) -> str:
    """The message of an error."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    ((name, message),) = response.json().items()
    assert name == "error" and "\n" not in message
    return message
