"""Trivial models against plain Python on lists of events."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

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
@pytest.mark.parametrize("max_events", [3, 100])
def test_item_knn_sums_the_largest_cosines(
    data: Interactions, max_events: int, max_products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "MAX_PRODUCTS", max_products)
    users = [set(events[-max_events:]) for events in histories(data, 2)]
    k, history = 4, [5, 9, 5, 12]
    expected = item_knn_scores(users, data.n_items, history, k)
    assert scores_of(ItemKNN(data, k, max_events), history) == pytest.approx(expected, abs=1e-6)


def item_knn_scores(users: list[set[int]], n_items: int, history: list[int], k: int) -> list[float]:
    having = [{u for u, items in enumerate(users) if item in items} for item in range(n_items)]

    def cosine(a: int, b: int) -> float:
        both = len(having[a] & having[b])
        return both / (len(having[a]) * len(having[b])) ** 0.5 if both and a != b else 0.0

    expected = [0.0] * n_items
    for item in set(history):
        near = sorted(range(n_items), key=lambda other: (-cosine(item, other), other))[:k]
        for other in near:
            expected[other] += cosine(item, other)
    return expected


def test_item_knn_counts_users_with_one_training_event(tmp_path: Path) -> None:
    """Histories of 3 events have one for training, those of 1 and of 4 events one and two."""
    lines, users = ["user_id,item_id,timestamp"], []
    for user in range(40):
        size = (3, 1, 4)[user % 3]
        items = [(7 * user + step * step) % 9 for step in range(size)]
        lines += [f"{user},{item},{step}" for step, item in enumerate(items)]
        users.append(items[: max(size - 2, 1)])
    file = tmp_path / "short.csv"
    file.write_text("\n".join(lines))
    data = load(DataConfig(path=str(file), min_item_events=1, min_user_events=1))
    rows = [{data.item_ids.index(str(item)) for item in items} for items in users]
    for item in range(1, data.n_items):
        expected = item_knn_scores(rows, data.n_items, [item], 100)
        assert scores_of(ItemKNN(data), [item]) == pytest.approx(expected, abs=1e-6)


def test_sums_of_item_knn_do_not_depend_on_the_order_of_items(data: Interactions) -> None:
    last = data.n_items - 1
    reverse = replace(data, items=last + 1 - data.items)
    for history in histories(data, 2):
        mirrored = scores_of(ItemKNN(reverse, data.n_items), [last + 1 - item for item in history])
        assert scores_of(ItemKNN(data, data.n_items), history)[1:] == mirrored[:0:-1]


def test_repeating_the_last_item_pays_only_where_it_is_ranked(tmp_path: Path) -> None:
    """On events of which half repeat the one before."""
    generator, lines = torch.Generator().manual_seed(0), ["user_id,item_id,timestamp"]
    for user in range(120):
        item = 0
        for time in range(20):
            drawn, repeats = torch.randint(60, (2,), generator=generator).tolist()
            item = item if repeats < 30 else drawn
            lines.append(f"{user},{item},{time}")
    file = tmp_path / "repeats.csv"
    file.write_text("\n".join(lines))
    data = load(DataConfig(path=str(file)))
    ranking = rank_trivial(RepeatLast(data), EvalBatches(data, "test", 20, 50))
    assert ranking.values["NDCG@10"] > 0.4 and ranking.masked["NDCG@10"] < 0.1
    assert 0 < ranking.new_targets < ranking.targets == 120
    assert ranking.new_masked is not None
    new_share = ranking.new_targets / ranking.targets
    assert ranking.masked["HR@10"] == pytest.approx(new_share * ranking.new_masked["HR@10"])


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
