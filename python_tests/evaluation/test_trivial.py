"""Trivial models against plain Python on lists of events."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch

from recgrela.data import DataConfig, EvalBatches, Interactions, load
from recgrela.evaluation import knn, trivial
from recgrela.evaluation.knn import ItemKNN
from recgrela.evaluation.trivial import FollowLast, Popularity, RepeatLast, TrivialModel, rank_trivial

DATA = DataConfig(synthetic_users=50, synthetic_items=30, synthetic_events=12, min_item_events=0)


@pytest.fixture(scope="module")
def data() -> Interactions:
    return load(DATA)


def histories(data: Interactions, drop: int) -> list[list[int]]:
    """Each user's events without the last `drop`."""
    ends = data.offsets.tolist()
    return [data.items[a : b - drop].tolist() for a, b in pairwise(ends)]


def scores_of(model: TrivialModel, history: list[int]) -> list[float]:
    items = torch.tensor(history)
    return model.score_packed(items, torch.tensor([0, len(history)]), len(history))[0].tolist()


def test_popularity_counts_training_events_only(data: Interactions) -> None:
    counts = Counter(item for events in histories(data, 2) for item in events)
    assert scores_of(Popularity(data), [1]) == [counts[item] for item in range(data.n_items)]


def test_repeat_last_ranks_the_history_by_recency(data: Interactions) -> None:
    scores = torch.tensor(scores_of(RepeatLast(data), [4, 7, 4, 2]))
    assert scores.topk(3).indices.tolist() == [2, 4, 7]
    popularity = torch.tensor(scores_of(Popularity(data), [1]))
    others = [item for item in range(data.n_items) if item not in (4, 7, 2)]
    assert torch.equal(scores[others], popularity[others])


def test_follow_last_counts_successive_training_events(
    data: Interactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trivial, "USERS_AT_ONCE", 7)  # counts are merged
    events = histories(data, 2)
    pairs = Counter(pair for one in events for pair in pairwise(one))
    popularity = Counter(item for one in events for item in one)
    model = FollowLast(data)
    for last in range(1, data.n_items):
        scores = scores_of(model, [3, last])
        key = [(pairs[last, item], popularity[item]) for item in range(data.n_items)]
        assert [x > y for x in scores for y in scores] == [x > y for x in key for y in key]


@pytest.mark.parametrize("max_products", [1, 300, 1 << 24])
def test_item_knn_sums_the_largest_cosines(
    data: Interactions, max_products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "MAX_PRODUCTS", max_products)
    users = [set(events) for events in histories(data, 2)]
    having = [{u for u, items in enumerate(users) if item in items} for item in range(data.n_items)]

    def cosine(a: int, b: int) -> float:
        both = len(having[a] & having[b])
        return both / (len(having[a]) * len(having[b])) ** 0.5 if both and a != b else 0.0

    k, history = 4, [5, 9, 5, 12]
    expected = [0.0] * data.n_items
    for item in set(history):
        near = sorted(range(data.n_items), key=lambda other: (-cosine(item, other), other))[:k]
        for other in near:
            expected[other] += cosine(item, other)
    assert scores_of(ItemKNN(data, k), history) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", [Popularity, RepeatLast, FollowLast, ItemKNN])
def test_ranking_is_that_of_the_scores(
    data: Interactions, kind: type[TrivialModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trivial, "MAX_SCORES", 4 * data.n_items)  # batches are cut
    model, batches = kind(data), EvalBatches(data, "test", 8, 7)
    ranks = rank_trivial(model, batches).ranks
    whole = histories(data, 0)
    for place, user in enumerate(batches.users.tolist()):
        *history, target = whole[user]
        scores = scores_of(model, history[-8:])
        others = [s for item, s in enumerate(scores) if item not in (0, target)]
        assert ranks[0, place] == 1 + sum(s >= scores[target] for s in others)
