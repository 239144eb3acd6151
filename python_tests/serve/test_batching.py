"""Joining of requests: one transaction for events, one search for queries, and faults of some of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from python_tests.support.serving import make_recommender
from recgrela.serve.batching import AddJob, Batcher, Busy, CallJob, Job, QueryJob
from recgrela.serve.engine import Engine
from recgrela.serve.metrics import Metrics
from recgrela.serve.queries import Found, NotFound, Query, Receipt
from recgrela.store import Event, Store
from recgrela.system.errors import DataError, OutOfMemory


class Recorded(Engine):
    """An engine that records the sizes of its calls and waits for a gate."""

    calls: list[tuple[str, int]]
    gate: threading.Event

    def add(self, events: Any) -> Any:
        self.calls.append(("add", len(events)))
        return super().add(events)

    def recommend(self, queries: Any) -> Any:
        self.calls.append(("recommend", len(queries)))
        return super().recommend(queries)


@pytest.fixture
def engine(store: Store) -> Recorded:
    engine = Recorded(make_recommender(), store)
    engine.calls, engine.gate = [], threading.Event()
    return engine


@pytest.fixture
def batcher(engine: Recorded) -> Iterator[Batcher]:
    batcher = Batcher(engine, Metrics(), max_batch=20, max_wait=0.0, max_queue=50)
    batcher.start()
    yield batcher
    engine.gate.set()
    batcher.close()


def hold(batcher: Batcher, engine: Recorded) -> None:
    """Keeps the thread busy until the gate opens, so that what follows is one batch."""
    begun = threading.Event()

    def wait(_: Engine) -> None:
        begun.set()
        engine.gate.wait(30)

    batcher.submit(CallJob(wait))
    assert begun.wait(30)


def submit(batcher: Batcher, *jobs: Job) -> list[Any]:
    return [batcher.submit(job) for job in jobs]


def event(user: str, item: str = "i1") -> Event:
    return Event(user, item, 1.0)


def test_one_batch(batcher: Batcher, engine: Recorded) -> None:
    """Events are stored before queries are answered; each job gets its own answer."""
    hold(batcher, engine)
    futures = submit(
        batcher,
        QueryJob(Query(user="a")),
        AddJob([event("a"), event("a", "i2")]),
        QueryJob(Query(user="nobody")),
        AddJob([event("b", "?")]),
        CallJob(lambda engine: engine.similar("i1", 2)),
        CallJob(lambda engine: engine.similar("?", 2)),
    )
    engine.gate.set()
    found = futures[0].result(30)
    assert isinstance(found, Found) and found.length == 2
    assert futures[1].result(30) == [Receipt(True, True)] * 2
    with pytest.raises(NotFound, match="nobody"):
        futures[2].result(30)
    assert futures[3].result(30) == [Receipt(True, False)]
    assert len(futures[4].result(30)) == 2
    with pytest.raises(NotFound):
        futures[5].result(30)
    assert engine.calls == [("add", 3), ("recommend", 2)]


def test_the_size_of_a_batch(batcher: Batcher, engine: Recorded) -> None:
    hold(batcher, engine)
    jobs = [AddJob([event("a")] * 9) for _ in range(5)]
    futures = submit(batcher, *jobs)
    engine.gate.set()
    for future in futures:
        assert len(future.result(30)) == 9
    assert engine.calls == [("add", 27), ("add", 18)]


def test_an_error_of_one_request(batcher: Batcher, engine: Recorded) -> None:
    """An invalid event fails its own request only."""
    hold(batcher, engine)
    futures = submit(batcher, AddJob([event("a")]), AddJob([event("b"), event("")]), AddJob([event("c")]))
    engine.gate.set()
    assert futures[0].result(30) == futures[2].result(30) == [Receipt(True, True)]
    with pytest.raises(DataError, match="user is empty"):
        futures[1].result(30)
    assert sorted(engine.store.users()) == ["a", "c"]


def test_a_lack_of_memory(batcher: Batcher, engine: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is repeated as single requests; one that is too large gets an error, and the thread goes on."""
    recommend = engine.recommend

    def in_little_memory(queries: Any) -> Any:
        if sum(query.k for query in queries) > 5:
            torch.empty(1 << 60)
        return recommend(queries)

    monkeypatch.setattr(engine, "recommend", in_little_memory)
    hold(batcher, engine)
    futures = submit(batcher, *(QueryJob(Query(history=("i1",), k=k)) for k in (2, 9, 4)))
    engine.gate.set()
    with pytest.raises(OutOfMemory, match=r"out of memory while answering requests: .* lower --max_batch"):
        futures[1].result(30)
    assert all(isinstance(futures[i].result(30), Found) for i in (0, 2))
    assert engine.calls == [("recommend", 1)] * 2


def test_cancelled_requests(batcher: Batcher, engine: Recorded) -> None:
    hold(batcher, engine)
    futures = submit(batcher, AddJob([event("a")]), AddJob([event("b")]))
    assert futures[0].cancel()
    engine.gate.set()
    futures[1].result(30)
    assert list(engine.store.users()) == ["b"]


def test_a_bug_does_not_end_the_thread(batcher: Batcher) -> None:
    with pytest.raises(ZeroDivisionError):
        batcher.submit(CallJob(lambda _: 1 / 0)).result(30)
    assert batcher.submit(CallJob(lambda _: 3)).result(30) == 3


def test_closing_answers_what_is_queued(batcher: Batcher, engine: Recorded) -> None:
    hold(batcher, engine)
    futures = submit(batcher, *(AddJob([event("a")]) for _ in range(30)))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    engine.gate.set()
    closing.join()
    assert all(future.result(0) == [Receipt(True, True)] for future in futures)
    with pytest.raises(Busy, match="stopping"):
        batcher.submit(CallJob(lambda _: 3))


def test_waiting_for_others(engine: Recorded) -> None:
    """The first job of a batch waits until the batch is full."""
    batcher = Batcher(engine, Metrics(), max_batch=3, max_wait=60.0, max_queue=50)
    batcher.start()
    futures = submit(batcher, *(AddJob([event("a")]) for _ in range(6)))
    for future in futures:
        future.result(30)
    assert engine.calls == [("add", 3), ("add", 3)]
    batcher.close()


def test_another_engine(batcher: Batcher, engine: Recorded, store: Store) -> None:
    other = Engine(make_recommender(seed=1), store)
    assert batcher.swap(other) is engine
    assert batcher.submit(CallJob(lambda engine: engine)).result(30) is other
