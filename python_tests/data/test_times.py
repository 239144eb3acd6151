"""Times as text: ISO 8601, given formats, and times that say nothing."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from python_tests.support.event_files import (
    BY_TIME,
    EVENTS,
    UNFILTERED,
    fails,
    histories,
    lines,
    read,
)
from recgrela.data import DataConfig, load_table
from recgrela.data.formats import text
from recgrela.data.formats.times import are_rounded

TIMES = {  # written in order of BY_TIME
    "dates": ["2020-09-11", "2020-09-15", "2020-09-12", "2020-09-12", "2020-09-13"],
    "minutes": [f"2020-09-13 {hour}" for hour in ("13:50", "15:00", "13:59", "13:51", "14:00")],
    "fractions": [f"2020-09-13T13:50:00.{part}" for part in ("1", "9", "123", "123", "1234")],
    "nanoseconds": [f"2020-09-13T13:50:00.{part}" for part in ("1", "123458", "123456", "2", "1234571")],
    "far": ["1500-01-01", "9999-12-31", "1500-01-01", "2020-01-01", "1969-12-31"],
    "Z": [f"2020-09-13T13:50:0{second}Z" for second in (1, 5, 2, 2, 3)],
    "zones": [f"2020-09-13 13:50:00{zone}" for zone in ("+05:30", "-02:00", "+0200", "+00", "Z")],
    "numbers": ["1", "7.5", "2", "3", "1e0"],
}
TIMES["numbers"][4] = "2.5"


@pytest.mark.parametrize("kind", TIMES)
def test_times(tmp_path: Path, kind: str) -> None:
    events = [(user, item, time) for (user, item, _), time in zip(EVENTS, TIMES[kind], strict=True)]
    content = lines(",", [("user_id", "item_id", "timestamp"), *events])
    assert read(tmp_path / "x.csv", content) == BY_TIME
    rows = [f'{{"user_id": "{u}", "item_id": {i}, "timestamp": "{t}"}}\n' for u, i, t in events]
    assert read(tmp_path / "x.jsonl", "".join(rows)) == BY_TIME
    users, items, times = zip(*events, strict=True)
    table = pa.table({"user_id": users, "item_id": items, "timestamp": times})
    assert histories(load_table(table, DataConfig(**UNFILTERED))) == BY_TIME


@pytest.mark.parametrize(
    ("time_format", "times"),
    [
        ("%d/%m/%Y", ["05/01/2020", "01/02/2021", "06/02/2020", "07/02/2020", "01/01/2021"]),
        ("%m/%d/%Y %I:%M:%S %p", [f"11/13/2019 {hour}" for hour in (
            "9:05:58 AM", "9:05:58 PM", "9:06:00 AM", "10:00:00 AM", "12:00:00 PM")]),
        ("%a %b %d %H:%M:%S %z %Y", [f"Tue Apr 03 18:00:06 {zone} 2012" for zone in (
            "+0500", "-0200", "+0200", "+0000", "+0000")]),
        ("%Y%m%d", ["20200101", "20210101", "20200102", "20200203", "20200103"]),
    ],
)  # fmt: skip
def test_given_formats_of_times(tmp_path: Path, time_format: str, times: list[str]) -> None:
    events = [(user, item, f'"{time}"') for (user, item, _), time in zip(EVENTS, times, strict=True)]
    content = lines(",", [("user_id", "item_id", "timestamp"), *events])
    assert read(tmp_path / "x.csv", content, time_format=time_format) == BY_TIME
    rows = [f'{{"user_id": "{u}", "item_id": {i}, "timestamp": {t}}}\n' for u, i, t in events]
    assert read(tmp_path / "x.jsonl", "".join(rows), time_format=time_format) == BY_TIME


NOT_ISO = "is not an ISO 8601 date or time without a time zone, as the first one"
NEITHER = (
    "is neither a finite number nor an ISO 8601 date or time; give their format with --data.time_format, or "
    "keep the order of the file with --data.order file"
)


@pytest.mark.parametrize(
    ("first", "bad", "settings", "fault"),
    [
        ("2020-01-01", "2020-02-30", {}, NOT_ISO),
        ("2020-01-01", "5", {}, NOT_ISO),
        ("2020-01-01", "2020-01-01T00:00:00Z", {}, NOT_ISO),
        (
            "2020-01-01T00:00Z",
            "2020-01-01",
            {},
            "is not an ISO 8601 date or time with a time zone, as the first one",
        ),
        ("2020-01-01 10:00:00.123", "", {}, NOT_ISO),
        ("5", "2020-01-01", {}, "is not a finite number"),
        ("05/01/2020", "", {"time_format": "%d/%m/%Y"}, "is not of data.time_format '%d/%m/%Y'"),
        ("05/01/2020", "05/13/2020", {"time_format": "%d/%m/%Y"}, "is not of data.time_format '%d/%m/%Y'"),
    ],
)
def test_wrong_times(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    bad: str,
    settings: dict[str, str],
    fault: str,
) -> None:
    monkeypatch.setattr(text, "_FAULT_LINES", 10)
    header = "user_id,item_id,timestamp\n"
    for place in (1, 9, 10, 11, 25):
        rows = [f"a,b,{first}\n"] * 25 + ["a,b\n"]
        rows[place] = f"a,b,{bad}\n"
        where = f", line {place + 2}, column 'timestamp': {bad!r} {fault}"
        if place < 25:
            fails(tmp_path / "x.csv", header + "".join(rows), where, **settings)
    missing = ", line 27: column 'timestamp' is missing, 2 of 3 columns (a truncated line?)"
    rows = [f"a,b,{first}\n"] * 25 + ["a,b\n", f"a,b,{bad}\n"]
    fails(tmp_path / "x.csv", header + "".join(rows), missing, **settings)


def test_times_of_an_unknown_kind(tmp_path: Path) -> None:
    header = "user_id,item_id,timestamp\n"
    for time in ("noon", "03/04/2020", "", "nan", "0x10"):
        expected = f", line 2, column 'timestamp': {time!r} {NEITHER}"
        fails(tmp_path / "x.csv", f"{header}a,b,{time}\n", expected)
    bad = "cannot be read; give a format of strptime, such as '%Y-%m-%d %H:%M:%S'; there is none for "
    for time_format in ("%Y %f", "date", "%Q"):
        expected = f"data.time_format: {time_format!r} {bad}fractions of seconds"
        fails(tmp_path / "x.csv", f"{header}a,b,1\n", expected, time_format=time_format)


def test_times_that_a_spreadsheet_rounded(tmp_path: Path) -> None:
    content = "user_id,item_id,timestamp\na,b,1.6E+09\na,c,1.6E+09\n"
    fix = "show the column as a number before exporting it, or set --data.order file"
    expected = f", column 'timestamp': '1.6E+09' was rounded, as spreadsheets round large numbers; {fix}"
    fails(tmp_path / "x.csv", content, expected)
    assert read(tmp_path / "x.csv", content, order="file") == {"a": ["b", "c"]}
    assert are_rounded(["1.6E+09", "2E9", "1,57E+12"])
    for times in (["1.6E+09"], ["1.6E+09", "5"], ["1.600000123e9", "1.6e9"], ["1e3", "2e3"], []):
        assert not are_rounded(times)
