"""The HTTP contract: status and message of every error, access, faults."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from python_tests.serve.clients import JSON, TOKEN, client_of, error_of
from recgrela.inference.recommender import Recommender
from recgrela.serve import limits
from recgrela.store import Store
from recgrela.system.errors import DiskFull, RunError

# ---- errors in bodies and parameters

BAD_EVENTS = {
    "no user": ({"item": "1"}, "user: Field required"),
    "empty user": ({"user": "", "item": "1"}, "user: String should have at least 1 character"),
    "long item": ({"user": "a", "item": "1" * 257}, "item: String should have at most 256 characters"),
    "control character": ({"user": "a\u0000", "item": "1"}, "user: Value error, has control characters"),
    "surrogate": ({"user": "a", "item": "\ud800"}, "item"),
    "boolean id": ({"user": True, "item": "1"}, "user: Input should be a valid string"),
    "nested id": ({"user": ["a"], "item": "1"}, "user: Input should be a valid string"),
    "text as time": ({"user": "a", "item": "1", "time": "12"}, "time: Input should be a valid number"),
    "boolean time": ({"user": "a", "item": "1", "time": True}, "time: Input should be a valid number"),
    "milliseconds": ({"user": "a", "item": "1", "time": 1.7e12}, "time: Value error, is over a day ahead"),
    "huge time": ({"user": "a", "item": "1", "time": 10**400}, "time"),
    "before the year 1": ({"user": "a", "item": "1", "time": -1e12}, "time: Input should be greater than"),
    "unknown field": ({"user": "a", "item": "1", "weight": 2}, "weight: Extra inputs are not permitted"),
    "no events": ([], "at least 1 item"),
    "too many": ([{"user": "a", "item": "1"}] * 1001, "at most 1000 items"),
    "second of a list": ([{"user": "a", "item": "1"}, {"user": "a"}], "1.item: Field required"),
    "a number": (3, "body"),
    "null": (None, "body"),
}


@pytest.mark.parametrize("case", BAD_EVENTS)
def test_bad_events(reader: TestClient, case: str) -> None:
    body, expected = BAD_EVENTS[case]
    # Not client.post(json=...), which refuses lone surrogates.
    message = error_of(reader.post("/events", content=json.dumps(body), headers=JSON), 422)
    assert expected in message and message.startswith("body")
    assert list(reader.app.state.service.store.users()) == ["a/b é"]


BAD_QUERIES = {
    "neither": ({}, "give either items or user"),
    "both": ({"items": ["1"], "user": "a"}, "give either items or user"),
    "empty history": ({"items": []}, "items: List should have at least 1 item"),
    "long history": ({"items": ["1"] * 10_001}, "items: List should have at most 10000 items"),
    "k of 0": ({"items": ["1"], "k": 0}, "k: Input should be greater than or equal to 1"),
    "large k": ({"items": ["1"], "k": 1001}, "k: Input should be less than or equal to 1000"),
    "fraction": ({"items": ["1"], "k": 1.5}, "k: Input should be a valid integer"),
    "empty allow": ({"items": ["1"], "allow": []}, "allow: List should have at least 1 item"),
    "unknown history": ({"items": ["?", "??"]}, "the history has no item that the model knows"),
    "nothing allowed": ({"items": ["1"], "allow": ["?"]}, "none of the model's items may be recommended"),
}


@pytest.mark.parametrize("case", BAD_QUERIES)
def test_bad_queries(reader: TestClient, case: str) -> None:
    body, expected = BAD_QUERIES[case]
    assert expected in error_of(reader.post("/recommendations", json=body), 422)


def test_unknown_users_and_items(reader: TestClient) -> None:
    assert "user 'nobody' has no events" in error_of(reader.get("/users/nobody/recommendations"), 404)
    assert "user 'nobody' has no events" in error_of(
        reader.post("/recommendations", json={"user": "nobody"}), 404
    )
    assert "user 'nobody' has no events" in error_of(reader.get("/users/nobody/history"), 404)
    assert "item '?' is not among" in error_of(reader.get("/items/%3F"), 404)
    assert "item '?' is not among" in error_of(reader.get("/items/%3F/similar"), 404)
    assert "history" in error_of(reader.post("/states", json={"items": ["?"]}), 422)


def test_bad_parameters(reader: TestClient) -> None:
    for path in (
        "/users/a/recommendations?k=0",
        "/users/a/recommendations?k=1001",
        "/users/a/recommendations?k=x",
    ):
        assert error_of(reader.get(path), 422).startswith("query.k: Input should be")
    assert "exclude_seen" in error_of(reader.get("/users/a/recommendations?exclude_seen=maybe"), 422)
    assert "limit" in error_of(reader.get("/users/a/history?limit=100000"), 422)
    assert "query" in error_of(reader.get("/items", params={"query": "x" * 257}), 422)
    assert "path.user" in error_of(reader.get(f"/users/{'x' * 257}/recommendations"), 422)
    assert "path.user" in error_of(reader.get("/users/a%00/recommendations"), 422)
    assert error_of(reader.delete("/users/a/history"), 405) == "Method Not Allowed"


def test_bodies_that_are_not_json(reader: TestClient) -> None:
    for body in (b"{", b"user=a", b"\xff\xfe", b"[NaN]", b'{"user": Infinity}', b"[" + b"9" * 5000 + b"]"):
        assert "not JSON" in error_of(reader.post("/events", content=body, headers=JSON), 400)
    for depth in (9, 500, 100_000):
        body = b'{"user": ' + b"[" * depth + b"]" * depth + b"}"
        assert "nested deeper than 8" in error_of(reader.post("/events", content=body, headers=JSON), 400)
    assert "content-type" in error_of(
        reader.post("/events", content=b"{}", headers={"content-type": "text/plain"}), 415
    )
    assert "content-type" in error_of(reader.post("/events", content=b"{}"), 415)


def test_large_bodies(reader: TestClient) -> None:
    event = {"user": "a", "item": "1", "id": None}
    large = json.dumps([event] * 10).encode() + b" " * limits.MAX_BODY
    assert "above 1048576 bytes" in error_of(reader.post("/events", content=large, headers=JSON), 413)

    def parts() -> Iterator[bytes]:  # sent without a length
        for _ in range(200):
            yield b" " * 10_000

    answer = reader.post("/events", content=parts(), headers=JSON)
    assert "above 1048576 bytes" in error_of(answer, 413) and answer.headers["connection"] == "close"
    fitting = json.dumps([]).encode().ljust(limits.MAX_BODY)
    assert "at least 1 item" in error_of(reader.post("/events", content=fitting, headers=JSON), 422)


# ---- access


def test_token(recommender: Recommender, store: Store) -> None:
    with client_of(recommender, store, token=TOKEN) as client:
        for given in (
            {},
            {"authorization": f"Bearer {TOKEN}x"},
            {"authorization": TOKEN},
            {"authorization": f"Basic {TOKEN}"},
            {"authorization": "Bearer "},
            {"authorization": "Bearer é".encode()},
        ):
            for path in ("/users/a/recommendations", "/items", "/metrics", "/no/such/route"):
                refused = client.get(path, headers=given)
                assert (
                    "valid token" in error_of(refused, 401)
                    and refused.headers["www-authenticate"] == "Bearer"
                )
            assert "valid token" in error_of(client.post("/events", json=[], headers=given), 401)
            assert "valid token" in error_of(client.post("/reload", headers=given), 401)
        for path in ("/", "/health", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        given = {"authorization": f"bearer {TOKEN}"}
        assert client.get("/items", headers=given).status_code == 200
        assert client.post("/events", json={"user": "a", "item": "1"}, headers=given).status_code == 200


def test_pages_of_other_sites(reader: TestClient) -> None:
    body = {"items": ["1"]}
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://localhost:81"}):
        assert "other sites" in error_of(reader.post("/recommendations", json=body, headers=headers), 403)
    assert "host must be" in error_of(reader.get("/items", headers={"host": "evil.example"}), 403)
    assert "host must be" in error_of(reader.get("/items", headers={"host": "[bad"}), 403)
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
        headers = {"host": host, "origin": f"http://{host}"}
        answer = reader.post("/recommendations", json=body, headers=headers)
        assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers


def test_reload_needs_a_token(reader: TestClient) -> None:
    assert "SIGHUP" in error_of(reader.post("/reload"), 403)


# ---- faults


def test_a_full_queue(recommender: Recommender, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, release = threading.Event(), threading.Event()
    with client_of(recommender, store, max_queue=1) as client:
        engine = client.app.state.service.engine
        real = engine.recommend

        def slow(queries: Any) -> Any:
            begun.set()
            release.wait(30)
            return real(queries)

        monkeypatch.setattr(engine, "recommend", slow)
        answers: list[Any] = []

        def ask() -> None:
            answers.append(client.post("/recommendations", json={"items": [recommender.item_ids[0]]}))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        assert begun.wait(30)
        threads[1].start()
        while client.app.state.service.batcher._queue.qsize() < 1:
            time.sleep(0.01)
        refused = client.post("/recommendations", json={"items": ["1"]})
        assert "are waiting" in error_of(refused, 503) and refused.headers["retry-after"] == "1"
        release.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200, 200]


def test_faults_of_the_store(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    store = client.app.state.service.store
    event = {"user": "a", "item": "1"}
    assert client.post("/events", json=event).status_code == 200

    def fail(error: Exception) -> Any:
        def call(*_: Any, **__: Any) -> Any:
            raise error

        return call

    with monkeypatch.context() as patch:
        patch.setattr(store, "append", fail(DiskFull("/secret/path is full")))
        assert (
            error_of(client.post("/events", json=event), 507)
            == "the disk of the store is full; nothing was stored"
        )
        assert client.get("/users/a/recommendations").status_code == 200
        patch.setattr(store, "append", fail(RunError("/secret/path is damaged")))
        answer = client.post("/events", json=event)
        assert "secret" not in error_of(answer, 503) and answer.headers["retry-after"] == "1"
        patch.setattr(store, "append", fail(MemoryError()))
        answer = client.post("/events", json=event)
        assert error_of(answer, 503) == "the server is out of memory; try again later"
        patch.setattr(store, "append", fail(RuntimeError("a bug in /secret")))
        assert (
            error_of(client.post("/events", json=event), 500)
            == "internal error; the server's log has the details"
        )
        patch.setattr(store, "users", fail(RunError("gone")))
        health = client.get("/health")
        assert health.status_code == 503 and health.json()["live"] and not health.json()["ready"]
    assert client.get("/health").status_code == 200
    assert client.post("/events", json=event).status_code == 200
    errors = [
        line for line in client.get("/metrics").text.splitlines() if line.startswith("recgrela_errors_total")
    ]
    assert errors == [
        f'recgrela_errors_total{{error="{name}"}} 1.0'
        for name in ("DiskFull", "RunError", "OutOfMemory", "RuntimeError")
    ]
