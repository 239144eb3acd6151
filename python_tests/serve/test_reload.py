"""Takeover of new checkpoints."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from recgrela.inference.recommender import Recommender
from recgrela.runs import checkpoint
from recgrela.runs.items import Items, write_items
from recgrela.runs.saved import load_run
from recgrela.serve.batching import Batcher, QueryJob
from recgrela.serve.metrics import Metrics
from recgrela.serve.queries import Found, Query
from recgrela.serve.reload import Reloader, Source
from recgrela.store import Event, Store
from recgrela.system.errors import RunError


def retrain(run: Path, seed: int) -> None:
    """Replaces the run's best checkpoint by one with other weights, in a folder of weights alone."""
    saved = load_run(run, "best", torch.device("cpu"))
    torch.manual_seed(seed)
    saved.model.reset_parameters()
    (run / "last.safetensors").unlink(missing_ok=True)
    checkpoint.save(saved.checkpoint_path, saved.model, saved.state.as_dict())


@dataclass
class Parts:
    run: Path
    store: Store
    batcher: Batcher
    metrics: Metrics
    reloader: Reloader

    def look(self) -> None:
        """Looks for a new checkpoint often enough to load it."""
        self.reloader.check()
        self.reloader.check()

    def outcomes(self) -> dict[str, float]:
        """Numbers of checkpoints by outcome."""
        (family,) = self.metrics.reloads.collect()
        return {s.labels["outcome"]: s.value for s in family.samples if s.name.endswith("_total")}

    def first_items(self) -> list[str]:
        """Recommendations to the user a."""
        found = self.batcher.submit(QueryJob(Query(user="a"))).result(30)
        assert isinstance(found, Found)
        return [item.item for item in found.items]

    def expected(self) -> list[str]:
        """Recommendations to the user a by the run's checkpoint."""
        history = [event.item for event in self.store.history("a")]
        found = Recommender.load(self.run, checkpoint="best", device="cpu").recommend(histories=[history])
        return found["item"].to_pylist()


@pytest.fixture
def parts(run: Path, store: Store) -> Iterator[Parts]:
    source = Source(run, "best", "cpu")
    identity = source.identity()
    engine, metrics = source.load(store), Metrics()
    engine.add(
        [
            Event(user, item, float(t))
            for user in "abc"
            for t, item in enumerate(engine.recommender.item_ids[:6])
        ]
    )
    batcher = Batcher(engine, metrics, max_batch=8, max_wait=0.0, max_queue=8)
    batcher.start()
    yield Parts(run, store, batcher, metrics, Reloader(source, identity, batcher, store, metrics, 0.0))
    batcher.close()


def test_nothing_new(parts: Parts) -> None:
    engine = parts.batcher.engine
    parts.look()
    assert parts.outcomes() == {} and parts.batcher.engine is engine


def test_a_file_that_is_being_copied(parts: Parts) -> None:
    retrain(parts.run, 1)
    best = parts.run / "best.safetensors"
    content, engine = best.read_bytes(), parts.batcher.engine
    for size in (100, 1000, len(content)):
        best.write_bytes(content[:size])
        parts.reloader.check()
        assert parts.outcomes() == {} and parts.batcher.engine is engine
    parts.reloader.check()
    assert parts.outcomes() == {"taken": 1}


def test_a_new_checkpoint(parts: Parts) -> None:
    before, old = parts.first_items(), parts.batcher.engine
    retrain(parts.run, 1)
    parts.look()
    new = parts.batcher.engine
    assert parts.outcomes() == {"taken": 1} and new.key != old.key
    assert [log.state is None for log in parts.store.load(old.key, ["a", "b", "c"])] == [True] * 3
    assert [log.pending for log in parts.store.load(new.key, ["a", "b", "c"])] == [[]] * 3
    assert parts.first_items() == parts.expected() != before
    (family,) = parts.metrics.model.collect()
    assert [sample.labels["key"] for sample in family.samples] == [new.key]
    parts.look()
    assert parts.outcomes() == {"taken": 1}


def test_events_during_a_takeover(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old model answers while states are computed; events that it stores reach the new states."""
    retrain(parts.run, 2)
    real = Source.load
    items = parts.batcher.engine.recommender.item_ids

    def load_engine(source: Source, store: Store) -> object:
        engine = real(source, store)
        rebuild = engine.rebuild

        def with_events(progress: object) -> int:
            done = rebuild(progress)
            parts.batcher.engine.add([Event("a", items[20], 50.0), Event("new", items[3], 50.0)])
            assert len(parts.first_items()) == 10
            return done

        engine.rebuild = with_events
        return engine

    monkeypatch.setattr(Source, "load", load_engine)
    parts.look()
    assert parts.outcomes() == {"taken": 1}
    assert parts.first_items() == parts.expected()
    answer = parts.batcher.submit(QueryJob(Query(user="new"))).result(30)
    assert answer.length == 1


@pytest.mark.parametrize("damage", ["cut", "text", "other model", "missing", "items"])
def test_a_damaged_checkpoint(parts: Parts, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    engine, before = parts.batcher.engine, parts.first_items()
    best, items = parts.run / "best.safetensors", parts.run / "items.parquet"
    kept = best.read_bytes(), items.read_bytes()
    if damage == "cut":
        best.write_bytes(kept[0][:-100])
    elif damage == "text":
        best.write_text("no checkpoint")
    elif damage == "other model":
        tensors = load(kept[0])
        tensors.pop(next(iter(tensors)))
        save_file(tensors, best)
    elif damage == "missing":
        best.unlink()
    else:
        write_items(items, Items(["[PAD]", "x"], [None, None], engine.catalogue.items.retired[:2]))
    with caplog.at_level(logging.ERROR):
        parts.look()
        parts.look()  # is not tried again
    assert parts.outcomes() == {"refused": 1} and parts.batcher.engine is engine
    (record,) = caplog.records
    assert "refused" in record.message and str(parts.run) in record.message
    assert parts.first_items() == before
    best.write_bytes(kept[0])
    items.write_bytes(kept[1])
    retrain(parts.run, 3)
    parts.look()
    assert parts.outcomes() == {"refused": 1, "taken": 1} and parts.first_items() == parts.expected()


def test_the_same_weights_with_other_items(parts: Parts) -> None:
    engine, first = parts.batcher.engine, parts.first_items()[0]
    items = engine.catalogue.items
    retired = items.retired.copy()
    retired[items.tokens.index(first)] = True
    write_items(parts.run / "items.parquet", Items(items.tokens, items.titles, retired))
    parts.look()
    assert parts.outcomes() == {"unchanged": 1} and parts.batcher.engine is not engine
    assert first not in parts.first_items()
    (log,) = parts.store.load(engine.key, ["b"])
    assert log.state is not None  # states are kept


def test_a_takeover_that_fails_is_tried_again(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    retrain(parts.run, 4)
    engine = parts.batcher.engine

    def fail(*_: object) -> None:
        raise RunError("locked")

    with monkeypatch.context() as patch:
        patch.setattr(parts.store, "load", fail)
        parts.look()
    assert parts.outcomes() == {"failed": 1} and parts.batcher.engine is engine
    parts.look()
    assert parts.outcomes() == {"failed": 1, "taken": 1}
    assert parts.first_items() == parts.expected()


def test_the_thread(parts: Parts) -> None:
    """`reload` wakes it, also without a change; `close` ends it."""
    parts.reloader.start()
    parts.reloader.reload()
    while parts.outcomes() != {"unchanged": 1}:
        pass
    parts.reloader.close()
    assert not parts.reloader._thread.is_alive()


def test_a_run_that_is_replaced_by_another(parts: Parts, trained_run: Path) -> None:
    shutil.rmtree(parts.run)
    parts.look()
    assert parts.outcomes() == {"refused": 1}
    shutil.copytree(trained_run, parts.run)
    parts.look()
    assert parts.outcomes() == {"refused": 1, "unchanged": 1}
