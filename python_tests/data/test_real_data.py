"""Published counts, on real data that is not part of the project."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from recgrela.data import DataConfig, EvalBatches, TrainBatches, load


def shared(name: str) -> str:
    folder = os.environ.get("RECGRELA_SHARED")
    if not folder or not (Path(folder) / "data" / name).exists():
        pytest.skip(f"skipped: set RECGRELA_SHARED to the folder that holds data/{name}")
    return str(Path(folder) / "data" / name)


@pytest.mark.parametrize("order", ["time", "recbole"])
def test_ml_1m(order):
    path = shared("ml-1m.inter.gz")
    start = time.process_time()
    data = load(DataConfig(path=path, order=order))
    seconds = time.process_time() - start
    counts = {"users": 6041, "items": 3417, "events": 999_611}
    assert {name: data.description[name] for name in counts} == data.description["published"] == counts
    assert data.n_items == 3417 and data.n_users == 6040
    last = TrainBatches(data, "last", 200, 2048, 2020)
    assert last.num_targets == 981_491 and last.num_steps == 480
    every = TrainBatches(data, "all", 200, 6400, 2020)
    assert [batch.num_tokens for batch in every.epoch(0)] == [6400] * 153 + [981_491 - 153 * 6400]
    assert (
        EvalBatches(data, "valid", 200, 256).num_users
        == EvalBatches(data, "test", 200, 256).num_users
        == 6040
    )
    assert data.titles[data.item_ids.index("1")] == "Toy Story (1995)"
    assert seconds < 3, "read, filter and pack, in CPU time of all threads"


def test_ml_100k():
    data = load(DataConfig(path=shared("ml-100k.inter.gz"), order="recbole"))
    assert (data.n_users, data.n_items, data.n_events) == (943, 1350, 99_287)
    last = TrainBatches(data, "last", 50, 2048, 2020)
    assert last.num_targets == 99_287 - 3 * 943 and last.num_steps == 48
    assert data.titles[data.item_ids.index("242")] == "Kolya"


def test_gowalla():
    data = load(DataConfig(path=shared("gowalla_1k.inter.gz"), min_user_events=0, min_item_events=0))
    assert (data.n_users, data.n_items, data.n_events) == (1000, 24_210, 157_251)
    assert data.titles is None
