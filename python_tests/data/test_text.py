"""Delimited text of any separator, with or without a header; times; JSON lines; sequences."""

from __future__ import annotations

import codecs
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from recgrela.data import DataConfig, Interactions, load, load_table, parts
from recgrela.data.__main__ import main
from recgrela.data.formats import json_lines, pieces, text
from recgrela.data.formats.times import are_rounded
from recgrela.data.packed import open_packed
from recgrela.system.errors import ConfigError, DataError

# user, item, time: a's events are out of order.
EVENTS = [("b", "20", "50"), ("a", "10", "300"), ("a", "20", "100"), ("b", "10", "60"), ("a", "30", "200")]
BY_TIME = {"b": ["20", "10"], "a": ["20", "30", "10"]}
BY_FILE = {"b": ["20", "10"], "a": ["10", "20", "30"]}
UNFILTERED = {"min_user_events": 0, "min_item_events": 0}


def lines(separator: str, events: list[tuple[str, ...]] = EVENTS) -> str:
    return "".join(separator.join(event) + "\n" for event in events)


def histories(data: Interactions) -> dict[str, list[str]]:
    items, begins = [data.item_ids[item] for item in data.items.tolist()], data.offsets.tolist()
    return {user: items[begins[row] : begins[row + 1]] for row, user in enumerate(data.user_ids)}


def read(path: Path, content: str | bytes, **settings: object) -> dict[str, list[str]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return histories(load(DataConfig(path=str(path), **UNFILTERED | settings)))


def fails(path: Path, content: str | bytes, expected: str, **settings: object) -> None:
    """Reading the content raises DataError or ConfigError with exactly this message after the path."""
    with pytest.raises((DataError, ConfigError)) as caught:
        read(path, content, **settings)
    assert str(caught.value).removeprefix(str(path)) == expected.replace("PATH", str(path))


WORDS = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " ", "::": "::", "\x01": "\x01"}


@pytest.mark.parametrize("suffix", ["csv", "txt", "tsv", "dat", "inter"])
@pytest.mark.parametrize("word", WORDS)
def test_separators_are_found(tmp_path: Path, word: str, suffix: str) -> None:
    names = ("user_id:token", "item_id:token", "timestamp:float")
    header = names if suffix == "inter" else tuple(name.partition(":")[0] for name in names)
    path, separator = tmp_path / f"x.{suffix}", WORDS[word]
    assert read(path, lines(separator, [header, *EVENTS])) == BY_TIME
    assert read(path, lines(separator), columns="user_id, item_id,timestamp") == BY_TIME
    assert read(path, lines(separator), columns="user_id,item_id,timestamp", separator=word) == BY_TIME
    extra = [("x y", time, "", user, item) for user, item, time in EVENTS]
    if word != "space":
        assert read(path, lines(separator, extra), columns="_,timestamp,_,user_id,item_id") == BY_TIME


@pytest.mark.parametrize("separator", ["<sep>", "§", " | ", ", ", "||", r"\t"])
def test_other_separators_are_given(tmp_path: Path, separator: str) -> None:
    between = "\t" if separator == r"\t" else separator
    content = lines(between, [("user_id", "item_id", "timestamp"), *EVENTS])
    assert read(tmp_path / "x.csv", content, separator=separator) == BY_TIME


def test_runs_of_spaces_and_tabs(tmp_path: Path) -> None:
    content = "  user_id\t item_id   timestamp \r\n" + "".join(
        f" \t{user}   {item}\t\t{time}  \r\n\r\n" for user, item, time in EVENTS
    )
    assert read(tmp_path / "x.txt", content) == BY_TIME
    fails(
        tmp_path / "x.txt",
        content + "a 1\n",
        ", line 12: column 'timestamp' is missing, 2 of 3 columns (a truncated line?)",
    )


def test_a_long_text_is_changed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The separator becomes one byte, and the lines stay in their places, whatever the size of the pieces."""
    content = "".join(f"{number}::a  b::{number * number}\n\n" for number in range(200))
    for size in (1, 7, 1000, 10**6):
        assert b"".join(pieces.pieces(pa.py_buffer(content.encode()), size)).decode() == content
        assert all(piece.endswith(b"\n") for piece in pieces.pieces(pa.py_buffer(content.encode()), size))
    found, byte = pieces.one_byte_separator(pa.py_buffer(content.encode() + b"\x1f"), "x", "::")
    assert found.to_pybytes().decode() == content.replace("::", byte) + "\x1f"
    with pytest.raises(DataError, match="contains the control characters"):
        pieces.one_byte_separator(pa.py_buffer(b"\x1f\x1e\x1d\x01\x02"), "x", "::")


def test_runs_of_the_separator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SIZE", 10)
    content = b"a::::b\n" * 9
    assert pieces.one_byte_separator(pa.py_buffer(content), "x", "::")[0].to_pybytes() == content.replace(
        b"::", b"\x1f"
    )
    with pytest.raises(DataError, match="x, line 10: ':::' is not clear, as the separator is '::'"):
        pieces.one_byte_separator(pa.py_buffer(content + b"a::::b:::c"), "x", "::")


def test_ids_may_contain_a_part_of_the_separator(tmp_path: Path) -> None:
    content = "u:1::i:2::3::4\nu:1::i:1::3::3\n"
    assert read(tmp_path / "ratings.dat", content) == {"u:1": ["i:1", "i:2"]}


def test_names_are_trimmed_and_quoted(tmp_path: Path) -> None:
    content = '\ufeffitem_id ;"user_id";  timestamp\n' + "".join(f'"{i}";{u};{t}\n' for u, i, t in EVENTS)
    assert read(tmp_path / "x.csv", content) == BY_TIME
    quoted = '"user_id"\t"item_id"\t"timestamp"\n' + "".join(f'"{u}"\t"{i}"\t{t}\n' for u, i, t in EVENTS)
    assert read(tmp_path / "x.tsv", quoted) == BY_TIME
    assert read(tmp_path / "y.tsv", 'user_id\titem_id\ttimestamp\n"a\tb"\t1\n') == {'"a': ['b"']}


def test_files_without_a_header(tmp_path: Path) -> None:
    path, columns = tmp_path / "x.csv", "user_id,item_id,timestamp"
    fix = "name the columns, such as --data.columns user_id,item_id,timestamp"
    fails(path, "1,2,3\n1,3,4\n", f", line 1: not a header: '1', '2', '3'; {fix}")
    fails(path, "a 2020-01-01\n", ", line 1: not a header: 'a', '2020-01-01'; name the columns, such as "
          "--data.columns user_id,item_id, with --data.order file")  # fmt: skip
    path_columns = "user_id,item_id,_,timestamp,_"
    values = "'A1', 'B2', '5.0', '1600000000', '7'"
    fails(path, "A1,B2,5.0,1600000000,7\n", f", line 1: not a header: {values}; name the columns, such as "
          f"--data.columns {path_columns}")  # fmt: skip
    many = ",".join("123456789")
    expected = "--data.columns user_id,item_id,timestamp,_,_,_,_,_,_; for a user and their items a line, set "
    fails(path, f"{many}\n{many}\n", f", line 1: not a header: {', '.join(map(repr, '123456789'))}; name the "
          f"columns, such as {expected}data.format=sequences")  # fmt: skip
    fails(path, "sep=;\nuser_id;item_id;timestamp\n", ", line 1: 'sep=;' is for Excel only; remove the line")
    fix = "; remove it, or the setting data.columns"
    for header in ("'UserID', 'item-id', 'when'", "'visitor', 'page', 'when'"):
        content = header.replace("'", "").replace(", ", ",") + "\n1,2,3\n1,3,4\n"
        for order in ("time", "file"):
            fails(path, content, f", line 1: is a header, {header}{fix}", columns=columns, order=order)
    one = {"columns": "user_id,item_id", "order": "file"}
    assert read(path, "a,x\nb,3\n1,2\n", **one) == {"a": ["x"], "b": ["3"], "1": ["2"]}
    count = (
        "has 4 values separated by comma; data.columns has 3 names; name all columns ('_': ignored), or set "
    )
    fails(path, "1,2,3,4\n", f", line 1: '1,2,3,4' {count}data.separator", columns=columns)
    fails(path, "1,2,3\n1,2\n", ", line 2: column 'timestamp' is missing, 2 of 3 columns (a truncated line?)",
          columns=columns)  # fmt: skip
    fails(path, "1,2,3\n1,2,x\n", ", line 2, column 'timestamp': 'x' is not a finite number", columns=columns)
    assert read(path, "1,2,3", columns=columns) == {"1": ["2"]}


def test_wrong_separators(tmp_path: Path) -> None:
    path, content = tmp_path / "x.csv", "user_id;item_id;timestamp\n1;2;3\n"
    expected = ", line 1: no separator comma in 'user_id;item_id;timestamp'; set data.separator=semicolon"
    fails(path, content, expected, separator="comma")
    expected = ", line 1: no separator tab in '1;2;3'; set data.separator=semicolon"
    fails(path, "1;2;3\n", expected, separator="tab", columns="user_id,item_id,timestamp")
    among = "among 'who', 'item_id', 'timestamp'; set data.user_column"
    fails(path, content.replace("user_id", "who"), f", line 1: no column 'user_id' {among}")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"separator": ""},
            "data.separator: '' is not one of auto, tab, comma, semicolon, pipe, space, or a text",
        ),
        ({"separator": "semicolons"}, "such as '::'; did you mean 'semicolon'?"),
        ({"separator": 'a"'}, "contains a quotation mark or a line break"),
        (
            {"columns": "user_id,item_id"},
            "data.columns: no column 'timestamp' among 'user_id', 'item_id'; name it",
        ),
        ({"columns": "user_id,item_id"}, "without times, --data.order file keeps the order of the file"),
        ({"columns": "user_id,item,timestamp"}, "did you mean 'item'?"),
        ({"columns": "user_id,user_id,item_id,timestamp"}, "data.columns: 'user_id' occurs 2 times"),
        ({"order": "file", "duplicates": "drop"}, "data.duplicates: 'drop' compares times, which"),
    ],
)
def test_wrong_settings(settings: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DataConfig(**settings)
    assert expected in str(caught.value)


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


@pytest.mark.parametrize("name", ["x.csv", "x.inter", "x.jsonl", "ratings.dat", "ratings.csv", "x.parquet"])
def test_the_order_of_the_file(tmp_path: Path, name: str) -> None:
    users, items, times = zip(*EVENTS, strict=True)
    table = pa.table({"user_id": users, "item_id": items, "when": times})
    contents = {
        "csv": lines(",", [("user_id", "item_id", "when"), *EVENTS]),
        "inter": lines("\t", [("user_id:token", "item_id:token", "when:float"), *EVENTS]),
        "jsonl": "".join(f'{{"user_id": "{u}", "item_id": "{i}", "when": {t}}}\n' for u, i, t in EVENTS),
        "dat": lines("::", [(user, item, "5", time) for user, item, time in EVENTS]),
        "ratings.csv": lines(",", [("userId", "movieId", "timestamp"), *EVENTS]),
    }
    path, suffix = tmp_path / name, name.partition(".")[2]
    if suffix == "parquet":
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(table, sink)
        content: str | bytes = sink.getvalue().to_pybytes()
    else:
        content = contents.get(name, contents[suffix])
    assert read(path, content, order="file") == BY_FILE
    data = load(DataConfig(path=str(path), order="file", **UNFILTERED))
    assert data.description["order"] == "file"
    if not name.startswith("ratings"):
        first = "" if suffix == "parquet" else ", line 1"
        fix = "set data.time_column, or keep the order of the file with --data.order file"
        fails(path, content, f"{first}: no column 'timestamp' among 'user_id', 'item_id', 'when'; {fix}")


def test_parts_in_the_order_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`convert` of parts without times gives the events of one file, for every layout of text."""
    monkeypatch.setattr(parts, "BUCKETS", 3)
    rows = [(f"u{number % 7}", f"i{number * number % 11}") for number in range(300)]
    halves, options = (rows[:100], rows[100:]), ["--data.order", "file"]
    layouts: dict[str, tuple[list[str], list[str]]] = {
        "csv": ([f"user_id;item_id\n{lines(';', half)}" for half in halves], []),
        "txt": ([lines(" ", half) for half in halves], ["--data.columns", "user_id,item_id"]),
        "jsonl": (
            [lines("", [(f'{{"user_id":"{u}","item_id":"{i}"}}',) for u, i in half]) for half in halves],
            [],
        ),
        "seq": ([lines("  ", half) for half in halves], ["--data.format", "sequences"]),
    }  # fmt: skip
    found = []
    for suffix, (contents, further) in layouts.items():
        paths = [tmp_path / f"{name}.{suffix}" for name in ("part-0", "part-1")]
        for path, content in zip(paths, contents, strict=True):
            path.write_text(content)
        out = tmp_path / f"packed {suffix}"
        assert main(["convert", *map(str, paths), str(out), *options, *further]) == 0
        found.append(histories(open_packed(out)))
    expected = {user: [item for other, item in rows if other == user] for user, _ in rows}
    assert found == [expected] * len(layouts)


def test_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "_PIECE", 100)
    rows = [
        f'{{"who": {{"id": "{u}", "x": [1]}}, "item.id": {i}, "t": {t}, "y": "é"}}\n' for u, i, t in EVENTS
    ]
    names = {"user_column": "who.id", "item_column": "item.id", "time_column": "t"}
    assert read(tmp_path / "x.json", "\ufeff" + "\n".join(rows), **names) == BY_TIME
    rows[3] = rows[3].replace("60", "60.5")  # the first time is whole
    assert read(tmp_path / "x.ndjson", "".join(rows), **names) == BY_TIME
    rows[1] = rows[1].replace('"a"', "null")  # a missing id is dropped, as in every format
    assert read(tmp_path / "x.jsonl", "".join(rows), **names)["a"] == ["20", "30"]


A_LIST = ": a list; write an object a line, as jq -c '.[]' does"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[", A_LIST),
        ('[{"user_id": 1}]', A_LIST),
        (
            "{'user_id': 1}",
            ": a Python literal, not JSON; docs/data.md has a command that converts such files",
        ),
        ("{", ": an object over several lines; write an object a line, as jq -c . does"),
        ("5", ": expected an object for an event, not 5"),
        ('{"user_id": "a", "i', ": not JSON: Unterminated string starting at: line 1 column 18 (char 17)"),
        (
            '{"user_id": 5, "item_id": 3, "timestamp": 4}',
            ", column 'user_id': 5 is a number, but the first one is text; write all alike",
        ),
        (
            '{"user_id": "a", "item_id": [3], "timestamp": 4}',
            ", column 'item_id': [3] is not text or a number",
        ),
        (
            '{"user_id": "a", "item_id": true, "timestamp": 4}',
            ", column 'item_id': True is not text or a number",
        ),
        (
            f'{{"user_id": "a", "item_id": {2**63}, "timestamp": 4}}',
            f", column 'item_id': {2**63} is not a whole number below 2^63; write such values as text",
        ),
        (
            '{"user_id": "a", "item_id": 3, "timestamp": "noon"}',
            ", column 'timestamp': 'noon' is text, but the first one is a number; write all alike",
        ),
        (
            b'{"user_id": "\xe9", "item_id": 3, "timestamp": 4}',
            ", column 'user_id': '\\udce9' is not UTF-8 text (wrong encoding)",
        ),
    ],
)
def test_wrong_lines_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str | bytes, expected: str
) -> None:
    monkeypatch.setattr(json_lines, "_PIECE", 100)
    good = b'{"user_id": "a", "item_id": 3, "timestamp": 4}\n'
    content = good * 5 + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n" + good
    fails(tmp_path / "x.jsonl", content, f", line 7{expected}")


def test_the_first_line_of_json(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    among = "among 'user', 'user.id', 'item_id', 'timestamp'"
    line = '{"user": {"id": 1}, "item_id": 2, "timestamp": 3}'
    hint = "did you mean 'user.id'? set data.user_column"
    fails(path, line, f", line 1: no column 'user_id' {among}; {hint}")
    fails(path, "", ": empty file")


def test_values_that_the_first_events_of_json_lack(tmp_path: Path) -> None:
    """The first number decides on the type of a column, not the null before it."""
    content = (
        '{"user": null, "item_id": 1, "timestamp": 1}\n{"item_id": null, "timestamp": 2}\n'
        '{"user": {"id": 5}, "item_id": 1, "timestamp": 3}\n'
        '{"user": {"id": 5}, "item_id": 2, "timestamp": 2.5}\n'
    )
    assert read(tmp_path / "x.jsonl", content, user_column="user.id") == {"5": ["2", "1"]}
    ids = ", line 4, column 'user.id': 'x' is text, but the first one is a number; write all alike"
    fails(
        tmp_path / "x.jsonl",
        content.replace('5}, "item_id": 2', '"x"}, "item_id": 2'),
        ids,
        user_column="user.id",
    )


@pytest.mark.parametrize(
    ("content", "second"),
    [("a, 1, 2\n", ","), ("a\t1,2,3\n", ","), ("a 1;2\n", ";"), ("a: 1 2\n", ":")],
)
def test_sequences_with_two_separators(tmp_path: Path, content: str, second: str) -> None:
    given = {"format": "sequences", "order": "file"}
    fix = "write one between all ids, or set data.separator if the other is a part of ids"
    expected = f", line 1: ids are separated by ' ' and by '{second}'; {fix}"
    fails(tmp_path / "x.txt", content, expected, **given)
    user, *items = content.split()
    assert read(tmp_path / "x.txt", content, separator="space", **given) == {user: items}
    assert read(tmp_path / "x.txt", "a, 1, 2\n", separator=", ", **given) == {"a": ["1", "2"]}


def test_decimal_commas_and_separators_at_ends(tmp_path: Path) -> None:
    path, header = tmp_path / "x.csv", "user_id;item_id;rating;timestamp\n"
    fix = "write numbers with a decimal point, not a comma"
    for line in ("a;b;4;1600000000,5\n", "a;b;4;1600000000\na;b;4;1600000001,5\n"):
        place = f", line {line.count('a;b') + 1}, column 'timestamp': '160000000{line.count('a;b') - 1},5'"
        fails(path, header + line, f"{place} is not a finite number; {fix}")
    expected = f", line 2, column 'rating': '4,5' is not a number; {fix}"
    fails(path, header + "a;b;4,5;1600000000\n", expected, min_rating=3)
    expected = ", line 2: 5 columns, expected 4 (a separator at the end of the line?)"
    fails(path, header + "a;b;4;1;\n", expected)


def test_a_comma_after_an_object(tmp_path: Path) -> None:
    line = '{"user_id": 1, "item_id": 2, "timestamp": 3}'
    fix = "a comma follows the object; remove it, an object a line is enough"
    fails(tmp_path / "x.json", f"{line},\n{line}\n", f", line 1: {fix}")


def test_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SIZE", 10)
    given = {"format": "sequences", "order": "file"}
    content = "\ufeffb 20 10\r\n\r\n a  10\t20 \r\n\r\na 30"
    assert read(tmp_path / "x.txt", content, **given) == BY_FILE
    assert read(tmp_path / "x.txt", "b,20,10\na,10,20,30\n", **given) == BY_FILE
    assert read(tmp_path / "x.txt", "b::20::10\na::10::20::30\n", separator="::", **given) == BY_FILE
    assert read(tmp_path / "x.txt", "b 20 10\ra 10 20 30\r", **given) == BY_FILE
    assert read(tmp_path / "x.txt", "é 1 ü\n", **given) == {"é": ["1", "ü"]}
    alone = "; is the separator space?"
    fails(tmp_path / "x.txt", "a 1\n\nb\nc 2\n", f", line 3: 'b' has no items{alone}", **given)
    bad = ", line 2: an id is not UTF-8 text (wrong encoding, or a damaged file)"
    fails(tmp_path / "x.txt", b"a 1\nb \xe9\n", bad, **given)
    fails(tmp_path / "x.txt", b"a 1\nb 2\0\n", bad, **given)
    order = "data.order: PATH has sequences without times; set --data.order file"
    fails(tmp_path / "x.txt", content, order, format="sequences")
    fix = "for a user and their items a line, set data.format=sequences; else data.separator"
    fails(tmp_path / "x.txt", "1 2 3 4\n2 3\n", f": the first lines have 4, 2 values; {fix}")


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "table"])
def test_settings_of_text_for_other_formats(tmp_path: Path, name: str) -> None:
    table, path = pa.table({"user_id": ["a"], "item_id": [1], "timestamp": [2]}), tmp_path / name
    if name == "x.jsonl":
        path.write_text('{"user_id": "a", "item_id": 1, "timestamp": 2}\n')
    else:
        pa.parquet.write_table(table, path)
    other = "does not apply to .*, which is not delimited text"
    for settings, expected in (
        ({"separator": "tab"}, f"data.separator: {other}"),
        ({"columns": "user_id,item_id,timestamp"}, f"data.columns: {other}"),
        ({"time_format": "%Y"}, "data.time_format: does not apply to .*, whose times are int64, not text"),
    ):
        config = DataConfig(path=str(path), **UNFILTERED | settings)
        with pytest.raises(ConfigError, match=expected):
            load_table(table, config) if name == "table" else load(config)


def test_encodings(tmp_path: Path) -> None:
    content = lines(",", [("user_id", "item_id", "timestamp"), *EVENTS])
    fix = ": UTF-16 text; convert it to UTF-8, such as with iconv -f UTF-16 -t UTF-8"
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (b"", "utf-16-le"), (b"", "utf-16-be")):
        fails(tmp_path / "x.csv", mark + content.encode(encoding), fix)
        fails(tmp_path / "x.jsonl", mark + '{"user_id": 1}\n'.encode(encoding), fix)
    nul = "has a NUL byte; the file is damaged, or not UTF-8"
    fails(tmp_path / "x.csv", f"{content}c\0,1,2\n", f", line 7, column 'user_id': 'c\\x00' {nul}")
    assert read(tmp_path / "x.csv", content.replace("\n", ",\0\n").replace(",\0", ",note", 1)) == BY_TIME
