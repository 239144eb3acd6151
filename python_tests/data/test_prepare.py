"""Filter, ids and order against naive implementations."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from recgrela.data import DataConfig
from recgrela.data.events import Events
from recgrela.data.prepare import by_first_appearance, k_core, prepare
from recgrela.settings.data import ORDERS


def make_events(users, items, times) -> Events:
    user_tokens, item_tokens = (sorted({str(x) for x in column}) for column in (users, items))
    return Events(
        users=np.array([user_tokens.index(str(user)) for user in users], dtype=np.int32),
        items=np.array([item_tokens.index(str(item)) for item in items], dtype=np.int32),
        times=np.array(times),
        user_tokens=user_tokens,
        item_tokens=item_tokens,
        sha256="",
        source="test",
        format="test",
    )


def naive_k_core(pairs, user_range, item_range):
    rows = list(range(len(pairs)))
    while True:
        counts = [Counter(pairs[row][side] for row in rows) for side in (0, 1)]
        kept = [
            row
            for row in rows
            if all(
                least <= count[pairs[row][side]] <= (most if most is not None else len(pairs))
                for side, (count, (least, most)) in enumerate(
                    zip(counts, (user_range, item_range), strict=True)
                )
            )
        ]
        if kept == rows:
            return rows
        rows = kept


@pytest.mark.parametrize("seed", range(20))
def test_k_core_matches_naive(seed):
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 400))
    users = random.integers(0, 1 + n // 6, n).astype(np.int32)
    items = (random.random(n) ** 2 * (1 + n // 6)).astype(np.int32)
    user_range = (int(random.integers(0, 7)), None if seed % 2 else 8)
    item_range = (int(random.integers(0, 7)), None if seed % 3 else 9)
    pairs = list(zip(users.tolist(), items.tolist(), strict=True))
    assert k_core(users, items, user_range, item_range).tolist() == naive_k_core(
        pairs, user_range, item_range
    )


def test_k_core_drops_users_and_items_together():
    # Round one drops item 1, after which user 1 has a single event and is dropped in round two.
    users, items = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 0, 0, 1])
    assert k_core(users, items, (2, None), (2, None)).tolist() == [0, 1, 2]
    # Both are dropped, because both are counted on the same rows: dropping user 1 first would keep item 1.
    users, items = np.array([0, 0, 1]), np.array([0, 1, 1])
    assert k_core(users, items, (2, None), (0, 1)).tolist() == []


def test_ids_by_first_appearance_after_filtering():
    codes, tokens = by_first_appearance(np.array([3, 1, 3, 0, 1]), ["a", "b", "c", "d"])
    assert codes.tolist() == [0, 1, 0, 2, 1] and tokens == ["d", "b", "a"]
    data = prepare(
        make_events("xyxyyz", "qpqppq", [9, 8, 7, 6, 5, 4]), DataConfig(min_user_events=2, min_item_events=3)
    )
    # z is dropped, then q with 2 events, then x without events: y and p remain.
    assert data.user_ids == ["y"] and data.item_ids == ["[PAD]", "p"] and data.dropped_users == {"x", "z"}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(10))
def test_packing_matches_naive(seed, order):
    random = np.random.default_rng(seed)
    n = 300
    users, items = random.integers(0, 30, n), random.integers(0, 25, n)
    times = 978_300_000 + random.integers(0, 400, n)  # many ties, and many within one float32 step of 64 s
    if seed % 2:
        times = times + random.integers(0, 4, n) / 4
    data = prepare(make_events(users, items, times), DataConfig(order=order))

    rows = naive_k_core(list(zip(users, items, strict=True)), (5, None), (5, None))
    user_ids = list(dict.fromkeys(str(users[row]) for row in rows))
    item_ids = ["[PAD]", *dict.fromkeys(str(items[row]) for row in rows)]
    assert data.user_ids == user_ids and data.item_ids == item_ids and data.n_items == len(item_ids)
    assert data.offsets[0] == 0 and data.offsets[-1] == len(rows) == data.n_events
    for number, user in enumerate(user_ids):
        mine = [row for row in rows if str(users[row]) == user]
        keys = {
            "time": lambda row: times[row],
            "recbole": lambda row: np.float32(times[row]),
            "item": lambda row: (times[row], items[row]),
            "file": lambda row: 0,
        }
        mine.sort(key=keys[order])  # stable
        expected = [item_ids.index(str(items[row])) for row in mine]
        assert data.items[data.offsets[number] : data.offsets[number + 1]].tolist() == expected


def test_float32_time_has_steps_of_64_seconds():
    """RecBole keeps the file order of times within one step of float32."""
    step = 978_300_032  # a multiple of 64
    times = [step + 65, step + 20, step + 10, step - 40, step + 10]
    settings = {"min_user_events": 0, "min_item_events": 0}

    def order(name: str) -> list[str]:
        data = prepare(make_events("u" * 5, "abcde", times), DataConfig(order=name, **settings))
        return [data.item_ids[item] for item in data.items]

    assert order("time") == ["d", "c", "e", "b", "a"]
    assert order("recbole") == ["d", "b", "c", "e", "a"]
    assert order("file") == ["a", "b", "c", "d", "e"]


def test_ties_by_item_id():
    """Whole numbers are compared as numbers, other ids as texts."""
    for ids, expected in (
        (["10", "9", "-3", "18446744073709551616"], ["-3", "9", "10", "18446744073709551616"]),
        (["10", "9", "b", "a"], ["10", "9", "a", "b"]),
    ):
        config = DataConfig(order="item", min_user_events=0, min_item_events=0)
        data = prepare(make_events("u" * 4, ids, [5] * 4), config)
        assert [data.item_ids[item] for item in data.items] == expected


def test_published_counts_only_under_the_published_filter():
    events = make_events("uuuuu", "iiiii", range(5))
    published = {"users": 6041, "items": 3417, "events": 999_611}
    for source in (
        "ml-1m.inter.gz",
        "/data/ML-1M.inter",
        "/a/ml-1m.zip:ml-1m/ratings.dat",
        "a.zip:b/ml-1m.csv",
    ):
        named = Events(**{**vars(events), "source": source})
        assert prepare(named, DataConfig()).description["published"] == published
        assert "published" not in prepare(named, DataConfig(min_user_events=4)).description
    for source in (
        "test",
        "/data/ml-1m/log.csv",
        "/ml-1m.v2/ratings.dat",
        "a.zip:ml-1m/log.csv",
        "/a:ml-1m/x.csv",
    ):
        named = Events(**{**vars(events), "source": source})
        assert "published" not in prepare(named, DataConfig()).description
