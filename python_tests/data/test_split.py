"""Splits by time and by files, against plain Python on small random data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from python_tests.support.splits import (
    ALL,
    RULES,
    Naive,
    check,
    evaluated,
    naive_cuts,
    naive_filter,
    naive_phases,
    naive_split,
    to_events,
)
from recgrela.data import DataConfig
from recgrela.data.dates import to_iso, unit_of
from recgrela.data.prepare import prepare
from recgrela.system.errors import ConfigError, DataError

ROWS = st.lists(
    st.tuples(st.sampled_from("abcdefg"), st.sampled_from("ijklmnop"), st.integers(-20, 20)),
    min_size=8,
    max_size=60,
)
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
@pytest.mark.parametrize("date", ["2001-09-09", "2001-09-09T00:00:00Z", "2001-09-09 02:00:00+02:00", None])
def test_dates_are_in_the_unit_of_the_times(unit, date):
    midnight = 999_993_600
    rows = [("ab"[n % 2], "ij"[n // 2 % 2], (midnight + 3600 * (n - 30)) * unit) for n in range(40)]
    text = date or str(midnight * unit)
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


def test_the_unit_of_dates_in_files_is_known():
    """ISO dates of 1970 are in microseconds, which by their size could be milliseconds of 1994."""
    rows = [("ab"[n % 2], "ij"[n // 2 % 2], (9 * 86400 + 3600 * n) * 10**6) for n in range(40)]
    events = replace(to_events(rows), ticks=10**6)
    config = DataConfig(split="time", split_date="1970-01-11", split_targets="all", **ALL)
    facts = prepare(events, config).description["split"]
    assert facts["test_from"] == 10 * 86400 * 10**6 and facts["test"]["events"] == 16
    assert facts["test_from_date"] == "1970-01-11T00:00:00+00:00"


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
