"""Statistics of data sets against counts by hand and by plain loops."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_tests.support.files import shared_file
from recgrela.data import statistics
from recgrela.data.events import Events
from recgrela.data.formats import read
from recgrela.data.prepare import prepare
from recgrela.settings.data import DataConfig

ALL = DataConfig(min_user_events=0, min_item_events=0)
DAY = 86400


def events_of(users: list[int], items: list[int], times: list[float]) -> Events:
    names = [str(number) for number in range(1 + max(users + items))]
    arrays = (np.array(users, np.int32), np.array(items, np.int32), np.array(times))
    return Events(*arrays, names, names, sha256="", source="here", format="none")


def compute(events: Events, config: DataConfig = ALL) -> dict[str, Any]:
    data, times = prepare(events, config), statistics.user_times(events, config)
    assert times is not None
    return {
        "count": statistics.count(data),
        "lengths": statistics.lengths(data),
        "popularity": statistics.popularity(data),
        "repeats": statistics.repeats(data),
        "ties": statistics.ties(times),
        "span": statistics.span(times),
        "leakage": statistics.leakage(times),
    }


def by_loops(events: Events) -> dict[str, Any]:
    """The same numbers by dictionaries and loops over users."""
    histories: dict[int, list[tuple[float, int]]] = {}
    for user, item, time in zip(events.users, events.items, events.times, strict=True):
        histories.setdefault(int(user), []).append((float(time), int(item)))
    for history in histories.values():
        history.sort(key=lambda event: event[0])
    total = len(events.users)
    repeated = immediate = tied = users_with_ties = 0
    largest, distinct, last_seen, targets, training = 0, [], [], [], []
    for history in histories.values():
        items, times = [item for _, item in history], [time for time, _ in history]
        repeated += sum(item in items[:i] for i, item in enumerate(items))
        immediate += sum(a == b for a, b in pairwise(items))
        ties = sum(a == b for a, b in pairwise(times))
        tied, users_with_ties = tied + ties, users_with_ties + (ties > 0)
        groups = Counter(times)
        largest = max(largest, *groups.values())
        distinct.append(len(groups) / len(times))
        if len(history) >= 3:
            last_seen.append(items[-1] in items[:-1])
            targets.append(times[-1])
        training += times[:-2] if len(history) >= 3 else times
    counts = sorted(Counter(events.items.tolist()).values())
    differences = sum(abs(a - b) for a in counts for b in counts)
    late = sorted(events.times.tolist())[int((total - 1) * 0.9)]
    middle = sorted(targets)[(len(targets) - 1) // 2]
    return {
        "gini": differences / (2 * len(counts) * sum(counts)),
        "top_10%": sum(counts[-max(round(len(counts) / 10), 1) :]) / total,
        "once": counts.count(1) / len(counts),
        "repeats": {
            "events": repeated / total,
            "immediate": immediate / total,
            "targets": np.mean(last_seen),
        },
        "ties": {
            "events": tied / total,
            "users": users_with_ties / len(histories),
            "distinct_times": np.mean(distinct),
            "largest": largest,
        },
        "leakage": {
            "targets_before_90%": np.mean([target < late for target in targets]),
            "training_after_median_target": np.mean([time > middle for time in training]),
            "training_after_target": np.mean([np.mean([t > target for t in training]) for target in targets]),
        },
    }


def test_by_hand() -> None:
    found = compute(
        events_of(
            [0, 0, 0, 0, 1, 1, 2],
            [5, 5, 6, 5, 6, 7, 5],
            [n * DAY + 1_000_000_000 for n in (0, 0, 1, 2, 3, 5, 9)],
        )
    )
    assert found["count"] == {
        "users": 3,
        "items": 3,
        "events": 7,
        "mean_user_events": 7 / 3,
        "mean_item_events": 7 / 3,
        "sparsity": 1 - 7 / 9,
    }
    assert found["lengths"]["median"] == 2 and found["lengths"]["max"] == 4
    assert found["lengths"]["below_3"] == 2 / 3
    assert found["popularity"]["once"] == 1 / 3 and found["popularity"]["top_1%"] == 4 / 7
    assert found["popularity"]["gini"] == pytest.approx(2 / 7)
    assert found["repeats"] == {"events": pytest.approx(2 / 7), "immediate": 1 / 7, "targets": 1.0}
    assert found["ties"] == {
        "events": pytest.approx(1 / 7),
        "users": 1 / 3,
        "distinct_times": pytest.approx((0.75 + 1 + 1) / 3),
        "largest": 2,
    }
    assert found["span"] == {
        "first": 1_000_000_000,
        "last": 1_000_000_000 + 9 * DAY,
        "first_date": "2001-09-09T01:46:40+00:00",
        "last_date": "2001-09-18T01:46:40+00:00",
        "days": 9,
        "median_user_days": 2,
    }
    later = found["leakage"]  # one target, on day 2; training events on days 0, 0, 3, 5, 9
    assert later == {
        "targets_before_90%": 1,
        "training_after_median_target": 0.6,
        "training_after_target": 0.6,
    }


@pytest.mark.parametrize("seed", range(5))
def test_random_events(seed: int) -> None:
    random = np.random.default_rng(seed)
    size = 400
    users, items = random.integers(0, 40, size), (30 * random.random(size) ** 2).astype(int)
    times = random.integers(0, 60, size)
    events = events_of(users.tolist(), items.tolist(), times.tolist())
    found, expected = compute(events), by_loops(events)
    for name in ("gini", "top_10%", "once"):
        assert found["popularity"][name] == pytest.approx(expected[name])
    for name in ("repeats", "ties", "leakage"):
        assert found[name] == {key: pytest.approx(value) for key, value in expected[name].items()}


def test_only_events_that_the_filter_keeps_count() -> None:
    events = events_of([0, 0, 0, 1, 1, 1, 2], [3, 4, 5, 3, 4, 5, 9], [1, 2, 3, 4, 5, 6, 999])
    found = compute(events, DataConfig(min_user_events=2, min_item_events=2))
    assert found["count"]["events"] == 6 and found["span"]["last"] == 6
    assert found["span"]["first_date"] is None and found["span"]["days"] is None


@pytest.mark.parametrize(("unit", "kind"), [(1, int), (1, float), (10**3, int), (10**6, int), (10**9, int)])
def test_units_of_unix_times(unit: int, kind: type) -> None:
    times = [kind((1_600_000_000 + second) * unit) for second in (0, 30, DAY)]
    events = events_of([0, 0, 0], [1, 2, 3], times)
    span = compute(events)["span"]
    assert span["first_date"] == "2020-09-13T12:26:40+00:00" and span["days"] == 1


def test_the_unit_of_dates_is_known() -> None:
    """Microseconds of 1970 could be milliseconds of 1994 by their size."""
    events = events_of([0, 0, 0], [1, 2, 3], [day * DAY * 10**6 for day in (8, 9, 10)])
    span = compute(replace(events, ticks=10**6))["span"]
    assert span["last_date"] == "1970-01-11T00:00:00+00:00" and span["days"] == 2


@pytest.mark.parametrize("scale", [1, -(2**40), 2**55, 0.25])
def test_times_of_any_size_are_sorted_by_user(scale: float) -> None:
    random = np.random.default_rng(0)
    users, times = random.integers(0, 9, 300), random.integers(-50, 50, 300) * scale
    found = statistics.user_times(events_of(users.tolist(), users.tolist(), times.tolist()), ALL)
    assert found is not None
    order = np.lexsort((times, users))
    assert found.times.tolist() == times[order].tolist()
    assert found.offsets.tolist() == [0, *np.cumsum(np.bincount(users))]


def test_equal_times_are_no_times() -> None:
    assert statistics.user_times(events_of([0, 0, 1], [1, 2, 3], [7, 7, 7]), ALL) is None


def test_no_user_has_a_target() -> None:
    found = compute(events_of([0, 0, 1], [1, 2, 3], [1, 2, 3]))
    assert found["leakage"] is None and found["repeats"]["targets"] is None


def test_movielens_1m(tmp_path: Path) -> None:
    config = DataConfig(path=str(shared_file("data/ml-1m.inter.gz")))
    found = compute(read(config), config)
    assert found["count"]["users"] == 6040 and found["count"]["items"] == 3416
    assert f"{100 * found['count']['sparsity']:.2f}" == "95.16"
    assert found["ties"]["events"] == pytest.approx(0.47, abs=0.005)
    assert found["repeats"]["events"] == 0
