"""Splits by time and by files, against plain Python on small random data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recgrela.data import (
    DataConfig,
    EvalBatches,
    Interactions,
    PackedWriter,
    TrainBatches,
    load,
    open_packed,
    write_packed,
)
from recgrela.data.__main__ import main
from recgrela.data.cuts import to_iso, unit_of
from recgrela.data.events import Events
from recgrela.data.packed import read_header
from recgrela.data.permutation import keys
from recgrela.data.prepare import prepare
from recgrela.data.split import SplitPart, Targets
from recgrela.system.errors import ConfigError, DataError

RULES = ["last", "first", "random", "all"]
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


ROWS = st.lists(
    st.tuples(st.sampled_from("abcdefg"), st.sampled_from("ijklmnop"), st.integers(-20, 20)),
    min_size=8,
    max_size=60,
)
ALL = {"min_user_events": 0, "min_item_events": 0}
RANDOM = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def expect(naive: Naive, make: Any) -> None:
    """Asserts that `make` gives interactions with a split, or an error if the split has no target."""
    if naive.valid and naive.test:
        check(make(), naive)
        return
    empty = "test" if naive.valid else "valid"
    with pytest.raises(DataError, match=rf"made by the test: {empty} has \d+ events but no target: a target"):
        make()


@RANDOM
@given(
    rows=ROWS,
    quantile=st.floats(0.1, 0.95),
    rule=st.sampled_from(RULES),
    scale=st.sampled_from([1, 0.25, 10**17]),
    fewest=st.sampled_from([0, 0, 0, 3]),
)
def test_split_by_time(rows, quantile, rule, scale, fewest):
    """Many ties at the cuts, users wholly before or after them, negative, fractional and large times."""
    rows = [(user, item, time * scale) for user, item, time in rows]
    config = DataConfig(
        split="time",
        split_quantile=quantile,
        split_targets=rule,
        min_user_events=fewest,
        min_item_events=fewest,
    )
    kept = naive_filter(rows, fewest)
    if not kept:
        return
    try:
        cuts = naive_cuts([row[2] for row in kept], quantile)
    except ValueError:
        with pytest.raises(DataError, match=r"no event is (after|between) the data\.split_quantile"):
            prepare(to_events(rows), config)
        return
    naive = naive_split(kept, naive_phases(kept, *cuts), rule)
    expect(naive, lambda: prepare(to_events(rows), config))
    if naive.valid and naive.test:  # the dates that a run records give the same split
        data = prepare(to_events(rows), config)
        facts = data.description["split"]
        assert (facts["valid_from"], facts["test_from"]) == cuts
        dates = {"split_date": repr(cuts[1]), "split_valid_date": repr(cuts[0])}
        again = prepare(to_events(rows), replace(config, **dates))
        assert again.description["split"]["sha256"] == facts["sha256"]


@RANDOM
@given(rows=ROWS, phases=st.lists(st.integers(0, 2), min_size=60, max_size=60), rule=st.sampled_from(RULES))
def test_split_by_files(rows, phases, rule):
    """Users and items of one file only, and files that overlap in time."""
    pairs = sorted(zip(phases, rows, strict=False), key=lambda pair: pair[0])  # files follow each other
    phases, rows = [phase for phase, _ in pairs], [row for _, row in pairs]
    config = DataConfig(split="files", split_targets=rule)
    naive = naive_split(rows, phases, rule)
    expect(naive, lambda: prepare(to_events(rows), config, np.array(phases, np.uint8)))


def test_times_of_recbole_are_cut_as_they_are_ordered():
    """Times near 10^9, rounded to float32, differ in steps of 64: no cut is between ties."""
    times = [10**9 + 20 * n for n in range(60)]
    rows = [("uvw"[n * n % 3], "ijkl"[n % 4], time) for n, time in enumerate(times)]
    config = DataConfig(split="time", order="recbole", split_targets="all", **ALL)
    rounded = [(user, item, float(np.float32(time))) for user, item, time in rows]
    naive = naive_split(rounded, naive_phases(rounded, *naive_cuts([r[2] for r in rounded], 0.9)), "all")
    check(prepare(to_events(rows), config), naive)
    dates = {"split_date": str(10**9 + 901), "split_valid_date": str(10**9 + 601)}
    cuts = (float(np.float32(10**9 + 601)), float(np.float32(10**9 + 901)))
    naive = naive_split(rounded, naive_phases(rounded, *cuts), "all")
    check(prepare(to_events(rows), replace(config, **dates)), naive)


def test_random_targets_are_spread():
    """Every held-out event of a user is chosen about equally often."""
    rows = [(f"u{user}", "i", time) for time in range(20) for user in range(1000)]
    config = DataConfig(split="time", split_date="12", split_valid_date="8", split_targets="random", **ALL)
    data = prepare(to_events(rows), config)
    for split, first, count in (("valid", 8, 4), ("test", 12, 8)):
        lengths = [len(history) for _, history, _ in evaluated(data, split)]
        counts = np.bincount(lengths, minlength=20)[first : first + count]
        assert counts.sum() == 1000 and counts.min() > 0.75 * 1000 / count


# ---- dates


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
@pytest.mark.parametrize(
    "date", ["2001-09-09", "2001-09-09T00:00:00Z", "2001-09-09 02:00:00+02:00", "1000_000_000"]
)
def test_dates_are_in_the_unit_of_the_times(unit, date):
    midnight = 999_993_600
    rows = [("ab"[n % 2], "ij"[n // 2 % 2], (midnight + 3600 * (n - 30)) * unit) for n in range(40)]
    text = date if date.startswith("2001") else str(midnight * unit)
    config = DataConfig(split="time", split_date=text, split_targets="all", **ALL)
    data = prepare(to_events(rows), config)
    facts = data.description["split"]
    assert facts["test_from"] == midnight * unit and facts["test_from_date"] == "2001-09-09T00:00:00+00:00"
    assert facts["test"]["events"] == 10 and len(evaluated(data, "test")) == 10
    assert facts["split_date"] == text


def test_units():
    assert [unit_of(10**power) for power in (7, 8, 9, 11, 12, 14, 17, 20)] == [
        None, 1, 1, 10**3, 10**3, 10**6, 10**9, None,
    ]  # fmt: skip
    assert to_iso(10**9 + 0.5, 1) == "2001-09-09T01:46:40.500000+00:00"
    assert to_iso(10**18 + 1, 10**9) == "2001-09-09T01:46:40+00:00"
    assert to_iso(-(10**9), 1) == "1938-04-24T22:13:20+00:00" and to_iso(5, None) is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"split_date": "2030-01-01"}, "data.split_date '2030-01-01' has no event at or after it; give a"),
        ({"split_date": "1990-01-01"}, "the first and the last of the data, 2001-09-09T01:46:40+00:00 and"),
        ({"split_date": "1e9"}, "data.split_date '1e9' has no event before it"),
        ({"split_date": "yesterday"}, "data.split_date: 'yesterday' is neither an ISO date, such as"),
        ({"split_date": "nan"}, "data.split_date: 'nan' is not a finite number"),
        ({"split_date": "1" * 400}, "is not a finite number"),
        ({"split_date": "9" * 30}, "has no event at or after it"),
        ({"split_valid_date": "2001-09-01"}, "data.split_valid_date '2001-09-01' is not between the first"),
        ({"split_valid_date": "1000000039"}, "and the first of test, 2001-09-09T01:47:16+00:00"),
        ({"split_quantile": 0.9999, "split_valid_date": "1000000020"}, None),
        ({"split_quantile": 0.001}, "no event is between the data.split_quantile 0.001 of the times before"),
    ],
)  # fmt: skip
def test_bad_dates(options, expected):
    rows = [("ab"[n % 2], "ij"[n // 2 % 2], 10**9 + n) for n in range(40)]
    config = DataConfig(split="time", **options, **ALL)
    if expected is None:
        assert prepare(to_events(rows), config).description["split"]["test"]["events"] == 1
        return
    with pytest.raises(DataError) as caught:
        prepare(to_events(rows), config)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_date_needs_unix_times():
    rows = [("ab"[n % 2], "ij"[n // 2 % 2], n) for n in range(40)]
    with pytest.raises(
        DataError, match="is a date, but the times, 0 to 39, are no Unix times; give a number"
    ):
        prepare(to_events(rows), DataConfig(split="time", split_date="2001-01-01", **ALL))
    with pytest.raises(
        DataError, match=r"no event is after the data\.split_quantile 0\.9 of the times, 5; lower"
    ):
        prepare(to_events([(u, i, 5) for u, i, _ in rows]), DataConfig(split="time", **ALL))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"split_date": "2001-01-01"}, "data.split_date: has no effect with data.split leave_one_out"),
        ({"split_targets": "all"}, "has no effect with data.split leave_one_out, only with time or files"),
        ({"split_quantile": 0.8}, "data.split_quantile: has no effect with data.split leave_one_out"),
        ({"split": "time", "valid_path": "x"}, "data.valid_path: has no effect with data.split time"),
        ({"split": "files", "split_valid_date": "1"}, "no effect with data.split files, only with time"),
        ({"split": "files", "min_user_events": 3}, "data.min_user_events: has no effect with data.split"),
        ({"split": "files", "test_path": " "}, "data.test_path: empty; give a file"),
        ({"split": "times"}, "data.split: 'times' is not one of leave_one_out, time, files"),
        ({"split": "time", "split_quantile": 1.0}, "data.split_quantile: 1.0 is not below 1"),
    ],
)  # fmt: skip
def test_settings_that_have_no_effect_are_refused(values, expected):
    with pytest.raises(ConfigError) as caught:
        DataConfig(**values)
    assert expected in str(caught.value)


# ---- files, packed data, parts, processes


def rows_of(seed: int, count: int = 1500) -> list[str]:
    """Lines of events of users and items of very different popularity, with many equal times."""
    random = np.random.default_rng(seed)
    users, items = random.geometric(0.02, count), random.geometric(0.03, count)
    times = random.integers(10**9, 10**9 + 300, count) + items  # late items are cold
    return [f"u{u}é,i{i},{t}" for u, i, t in zip(users, items, times, strict=True)]


def write(path: Path, lines: Sequence[str]) -> str:
    path.write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    return str(path)


def options_of(split: str, rule: str, folder: Path) -> list[str]:
    if split == "time":
        return ["--data.split=time", f"--data.split_targets={rule}", "--data.min_user_events=3"]
    paths = [write(folder / f"{name}.csv", rows_of(n + 7, 300)) for n, name in enumerate(("valid", "test"))]
    return [
        "--data.split=files",
        f"--data.split_targets={rule}",
        f"--data.valid_path={paths[0]}",
        f"--data.test_path={paths[1]}",
    ]


def config_of(options: Sequence[str], path: str) -> DataConfig:
    values: dict[str, Any] = dict(option.removeprefix("--data.").split("=") for option in options)
    if "min_user_events" in values:
        values["min_user_events"] = int(values["min_user_events"])
    return DataConfig(path=path, **values)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("split", ["time", "files"])
def test_packed_and_in_parts(tmp_path, monkeypatch, split, rule):
    """Data in memory, packed, and packed in parts have the same split and batches."""
    monkeypatch.setattr("recgrela.data.parts.BUCKETS", 3)
    lines, options = rows_of(1), options_of(split, rule, tmp_path)
    whole = write(tmp_path / "whole.csv", lines)
    parts = [write(tmp_path / f"part{n}.csv", lines[n * 500 : (n + 1) * 500]) for n in range(3)]
    config = config_of(options, whole)
    assert main(["convert", whole, str(tmp_path / "one"), *options]) == 0
    assert main(["convert", *parts, str(tmp_path / "many"), *options]) == 0
    data, one, many = load(config), *(open_packed(tmp_path / name) for name in ("one", "many"))
    assert data.description == one.description
    source = {"source": f"{parts[0]} and 2 more"}
    assert many.description == one.description | source
    files = {name: read_header(tmp_path / name)["files"] for name in ("one", "many")}
    for name in ("items.bin", "users.bin", "blocks.bin", "split.bin", "valid.bin", "test.bin", "items.arrow"):
        assert files["one"][name] == files["many"][name], name
    assert one.dropped_users == many.dropped_users
    assert files["one"]["split.bin"]["rows"] == data.n_users + 1
    for found in (one, many):
        assert torch.equal(found.train_item_counts(), data.train_item_counts())
        for name in ("valid", "test"):
            assert evaluated(found, name) == evaluated(data, name)
            assert evaluated(found, name, max_users=9) == evaluated(data, name, max_users=9)
        for objective in ("last", "all"):
            batches = [TrainBatches(d, objective, 7, 50, 3, pieces=2, rank=1, world=2) for d in (data, found)]
            for a, b in zip(*(made.epoch(1) for made in batches), strict=True):
                assert torch.equal(a.items, b.items) and torch.equal(a.target, b.target)
    packed = replace(config, path=str(tmp_path / "many"), valid_path=None, test_path=None)
    assert load(packed).split is not None  # the folder has the events of all files
    other = "last" if rule == "first" else "first"
    with pytest.raises(DataError, match=f"was packed with data.split_targets '{rule}', not '{other}'"):
        load(replace(packed, split_targets=other))
    with pytest.raises(DataError, match=f"was packed with data.split '{split}', not 'leave_one_out'"):
        load(DataConfig(path=packed.path, **(ALL if split == "files" else {"min_user_events": 3})))


def test_files_that_are_read(tmp_path):
    """All events of all files are kept; a user's history continues from file to file."""
    paths = {
        "path": write(tmp_path / "train.csv", ["a,i,5", "a,j,9", "b,j,1", "b,i,2"]),
        "valid_path": write(tmp_path / "valid.csv", ["a,j,1", "c,i,3", "c,k,4", "c,j,5"]),
        "test_path": write(tmp_path / "test.csv", ["c,i,2", "b,j,9", "b,i,8", "d,i,1", "d,j,2", "e,i,2"]),
    }
    data = load(DataConfig(split="files", **paths))
    assert evaluated(data, "valid") == [("a", ["i", "j"], "j"), ("c", ["i", "k"], "j")]
    assert evaluated(data, "test") == [
        ("b", ["j", "i"], "i"),
        ("b", ["j", "i", "i"], "j"),
        ("c", ["i", "k", "j"], "i"),
        ("d", ["i"], "j"),
    ]
    facts = data.description["split"]
    assert facts["train"] == {"users": 2, "events": 4, "targets": 2}
    assert facts["valid"] == {
        "users": 2, "targets": 2, "cold_targets": 1, "users_without_history": 1, "events": 4,
    }  # fmt: skip
    assert facts["test"]["users_without_history"] == 2  # d and e
    assert data.description["filter"]["min_user_events"] == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"path": "synthetic"}, "data.split: files needs files; give data.path, data.valid_path and"),
        ({"valid_path": None}, "data.valid_path: missing; data.split files needs data.valid_path and"),
        ({"test_path": None}, "data.test_path: missing"),
        ({"valid_path": "nothing.csv"}, "nothing.csv: no such file or folder"),
        ({"test_path": "cold.csv"}, "test has 2 events but no target"),
    ],
)
def test_bad_files(tmp_path, monkeypatch, values, expected):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "good.csv", ["a,i,5", "a,j,9"])
    write(tmp_path / "cold.csv", ["a,new,5", "b,i,6"])
    paths = dict.fromkeys(("path", "valid_path", "test_path"), "good.csv")
    with pytest.raises((DataError, ConfigError)) as caught:
        load(DataConfig(split="files", **(paths | values)))
    assert expected in str(caught.value)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_processes_share_the_targets(tmp_path, split):
    data = load(config_of(options_of("time", "all", tmp_path), write(tmp_path / "x.csv", rows_of(1))))
    whole = list(EvalBatches(data, split, 20, 3))
    shares = [EvalBatches(data, split, 20, 3, rank=rank, world=2) for rank in range(2)]
    assert all(share.num_batches == len(whole) for share in shares)
    for batch, (step, share) in zip(whole, ((s, shares[s % 2]) for s in range(len(whole))), strict=True):
        found = list(share)[step // 2]
        assert found.step == batch.step == step
        assert torch.equal(found.items, batch.items) and torch.equal(found.target, batch.target)


def test_fewer_users_have_all_their_targets(tmp_path):
    data = load(config_of(options_of("time", "all", tmp_path), write(tmp_path / "x.csv", rows_of(1))))
    whole, some = evaluated(data, "test"), evaluated(data, "test", max_users=7)
    users = {user for user, _, _ in some}
    assert len(users) == 7 and some == [target for target in whole if target[0] in users]
    assert EvalBatches(data, "test", 5, 4, max_users=7).num_users == 7


def test_leave_one_out_is_counted():
    rows = [("a", "i", 1), ("b", "i", 2), ("b", "j", 3), *(("c", "i", 4 + n) for n in range(5))]
    data = prepare(to_events(rows), DataConfig(**ALL))
    held_out = {"users": 1, "targets": 1, "events": 1}
    train = {"users": 3, "events": 6, "targets": 3}
    assert data.split is None
    assert data.description["split"] == {
        "split": "leave_one_out", "train": train, "valid": held_out, "test": held_out,
    }  # fmt: skip


def test_damage_of_a_packed_split_is_found(tmp_path):
    config = config_of(options_of("time", "all", tmp_path), write(tmp_path / "x.csv", rows_of(1)))
    write_packed(load(config), tmp_path / "packed")
    for name in ("split.bin", "valid.bin", "test.bin"):
        path = tmp_path / "packed" / name
        content = path.read_bytes()
        for changed in (content[:-8], bytes([content[0] ^ 1]) + content[1:]):
            path.write_bytes(changed)
            with pytest.raises(DataError, match=rf"{name}: damaged"):
                open_packed(tmp_path / "packed")
        path.write_bytes(content)
    write_packed(open_packed(tmp_path / "packed"), tmp_path / "again")
    assert read_header(tmp_path / "again") == read_header(tmp_path / "packed")


def test_a_split_is_written_for_all_users_or_none(tmp_path, make_interactions):
    part = SplitPart(np.array([1]), *(Targets(np.array([n]), np.arange(1, n + 1)) for n in (0, 1)))
    for has_split, split in ((True, None), (False, part)):
        with PackedWriter(tmp_path / "packed", has_split) as writer, pytest.raises(ValueError, match="split"):
            writer.append(pa.array(["a"]), np.array([2]), np.array([1, 2], np.int32), split)
