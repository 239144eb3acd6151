"""Splits by plain Python, and interactions checked against them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from recgrela.data import EvalBatches, Interactions, TrainBatches
from recgrela.data.events import Events
from recgrela.data.permutation import keys
from recgrela.system.errors import DataError

RULES = ["last", "first", "random", "all"]
ALL: dict[str, Any] = {"min_user_events": 0, "min_item_events": 0}  # no filter
Event = tuple[str, str, float]  # user, item, time


@dataclass
class Naive:
    """A split by plain Python: training events of each user; (user, history, target) of each target."""

    train: list[list[str]] = field(default_factory=list)
    valid: list[tuple[str, list[str], str]] = field(default_factory=list)
    test: list[tuple[str, list[str], str]] = field(default_factory=list)
    cold: dict[str, int] = field(default_factory=lambda: {"valid": 0, "test": 0})


def naive_split(rows: Sequence[Event], phases: Sequence[int], rule: str) -> Naive:
    """Splits events in file order, given the phase of each."""
    users: dict[str, list[tuple[int, float, str]]] = {}
    for (user, item, time), phase in zip(rows, phases, strict=True):
        users.setdefault(user, []).append((phase, time, item))
    trained = {item for (_, item, _), phase in zip(rows, phases, strict=True) if phase == 0}
    found = Naive()
    for row, (user, events) in enumerate(users.items()):
        events.sort(key=lambda event: event[:2])  # stable
        items = [item for _, _, item in events]
        found.train.append([item for phase, _, item in events if phase == 0])
        for number, name in ((1, "valid"), (2, "test")):
            places = [place for place, event in enumerate(events) if event[0] == number and place > 0]
            if rule != "all" and places:
                chosen = {"last": len(places) - 1, "first": 0, "random": naive_draw(row, number, len(places))}
                places = [places[chosen[rule]]]
            for place in places:
                if items[place] in trained:
                    getattr(found, name).append((user, items[:place], items[place]))
                else:
                    found.cold[name] += 1
    return found


def naive_draw(row: int, number: int, count: int) -> int:
    """SplitMix64 of a row, scaled to 0 .. count - 1."""
    z = (row * 0x9E3779B97F4A7C15 + int(keys(0, number - 1)[0])) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return ((z ^ z >> 31) >> 32) * count >> 32


def naive_cuts(times: Sequence[float], quantile: float) -> tuple[float, float]:
    """The first time of valid and of test. Raises ValueError without one."""

    def after(values: Sequence[float]) -> float:
        ordered = sorted(values)
        return min(v for v in ordered if v > ordered[math.floor((len(ordered) - 1) * quantile)])

    test = after(times)
    return after([time for time in times if time < test]), test


def naive_phases(rows: Sequence[Event], valid: float, test: float) -> list[int]:
    return [(time >= valid) + (time >= test) for _, _, time in rows]


def naive_filter(rows: Sequence[Event], fewest: int) -> list[Event]:
    """The events of users and items with enough events, again and again."""
    kept = list(rows)
    while True:
        counts = [{key: [r[c] for r in kept].count(key) for key in {r[c] for r in kept}} for c in (0, 1)]
        again = [r for r in kept if counts[0][r[0]] >= fewest and counts[1][r[1]] >= fewest]
        if len(again) == len(kept):
            return kept
        kept = again


def evaluated(data: Interactions, split: str, **options: Any) -> list[tuple[str, list[str], str]]:
    """(user, history, target) of every target, by the batches."""
    batches, names = EvalBatches(data, split, 10_000, 3, **options), data.item_ids
    found = []
    for batch in batches:
        rows, seen = batches.seen(batch)
        users = batches.users[batch.step * 3 :][: batch.size]
        assert batch.users.tolist() == users.tolist() and batch.size <= batches.max_size
        for place, user in enumerate(users):
            history = batch.items[batch.offsets[place] : batch.offsets[place + 1]].tolist()
            assert history == seen[rows == place].tolist() and len(history) <= batches.max_seqlen
            target = names[int(batch.target[place])]
            found.append((data.user_ids[user], [names[item] for item in history], target))
    return found


def check(data: Interactions, naive: Naive) -> None:
    """Asserts that interactions have a split."""
    facts, names = data.description["split"], data.item_ids
    for split in ("valid", "test"):
        expected = getattr(naive, split)
        assert evaluated(data, split) == expected
        users = [user for user, _, _ in expected]
        batches = EvalBatches(data, split, 5, 3)
        assert (batches.num_targets, batches.num_users) == (len(users), len(set(users)))
        assert [data.user_ids[row] for row in batches.users] == users
        counts = (facts[split]["targets"], facts[split]["users"], facts[split]["cold_targets"])
        assert counts == (len(users), len(set(users)), naive.cold[split])
    events = [names.index(item) for train in naive.train for item in train]
    counts = torch.bincount(torch.tensor(events, dtype=torch.int64), minlength=data.n_items)
    assert torch.equal(data.train_item_counts(), counts)
    assert facts["train"]["events"] == len(events)
    targets = [(train[:end], train[end]) for train in naive.train for end in range(1, len(train))]
    assert facts["train"]["targets"] == len(targets)
    if not targets:
        with pytest.raises(DataError, match="no user has two training events"):
            TrainBatches(data, "all", 5, 4, 0)
        return
    found = []
    for batch in TrainBatches(data, "last", 10_000, 4, 0).epoch(0):
        for place, target in enumerate(batch.target.tolist()):
            history = batch.items[batch.offsets[place] : batch.offsets[place + 1]].tolist()
            found.append(([names[item] for item in history], names[target]))
    assert sorted(found) == sorted(targets)
    windows = list(TrainBatches(data, "all", 3, 4, 0).epoch(1))
    assert sorted(names[item] for batch in windows for item in batch.target.tolist()) == sorted(
        item for _, item in targets
    )


def to_events(rows: Sequence[Event]) -> Events:
    users, items = sorted({row[0] for row in rows}), sorted({row[1] for row in rows})
    return Events(
        users=np.array([users.index(row[0]) for row in rows], np.int32),
        items=np.array([items.index(row[1]) for row in rows], np.int32),
        times=np.array([row[2] for row in rows]),
        user_tokens=users,
        item_tokens=items,
        sha256="",
        source="made by the test",
        format="csv",
    )
