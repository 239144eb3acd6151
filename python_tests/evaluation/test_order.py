"""Scores with and without the order of events."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from recgrela.data import DataConfig, Interactions, load
from recgrela.data.packed import open_packed
from recgrela.data.packing import write_packed
from recgrela.evaluation.order import order_scores, shuffled

ITEMS = 50


def interactions(histories: list[list[int]]) -> Interactions:
    return Interactions(
        items=torch.tensor([item for history in histories for item in history], dtype=torch.int32),
        offsets=torch.tensor([0, *np.cumsum([len(history) for history in histories])]),
        user_ids=[str(user) for user in range(len(histories))],
        item_ids=["[PAD]", *map(str, range(1, ITEMS + 1))],
        titles=None,
        n_items=ITEMS + 1,
        sha256="",
        description={"source": "here"},
    )


def chains(count: int = 200) -> Interactions:
    """Users go through all items in the same circle, from places of their own."""
    random = np.random.default_rng(0)
    starts = random.integers(0, ITEMS, count)
    return interactions([[(start + step) % ITEMS + 1 for step in range(12)] for start in starts.tolist()])


def test_order_decides() -> None:
    scores = order_scores(chains(), 200, None)
    assert scores["users"] == 200
    assert scores["follow_last"]["seen_ranked"] == 1
    assert scores["follow_last_shuffled"]["seen_ranked"] < 0.5
    assert scores["popularity"]["seen_ranked"] < 0.5


def test_order_says_nothing() -> None:
    random = np.random.default_rng(1)
    weights = random.random(ITEMS) ** 3
    weights /= weights.sum()
    drawn = [(random.choice(ITEMS, 12, p=weights) + 1).tolist() for _ in range(2000)]
    scores = order_scores(interactions(drawn), 200)
    ordered, without = (scores[name]["seen_ranked"] for name in ("follow_last", "follow_last_shuffled"))
    assert abs(ordered - without) < 0.02


def test_users_are_limited() -> None:
    assert order_scores(chains(), 200, 50)["users"] == 50


def test_shuffled_histories(tmp_path: Path) -> None:
    data = interactions([[1, 2, 3, 4, 5, 6, 7, 8], [9], [1, 2], list(range(1, 40))])
    found = shuffled(data)
    bounds = data.offsets.tolist()
    for begin, end in pairwise(bounds):
        before, after = data.items[begin:end].tolist(), found.items[begin:end].tolist()
        assert after[-1] == before[-1] and sorted(after) == sorted(before)
    assert found.items.dtype == torch.int32 and found.items.tolist() != data.items.tolist()
    assert torch.equal(found.items, shuffled(data).items)


def test_packed_data_have_the_same_scores(tmp_path: Path) -> None:
    data = load(DataConfig(synthetic_users=60))
    write_packed(data, tmp_path / "packed")
    packed = open_packed(tmp_path / "packed")
    assert order_scores(packed, 200) == order_scores(data, 200)
