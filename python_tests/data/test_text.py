"""Delimited text of any separator, with or without a header; times; JSON lines; sequences."""

from __future__ import annotations

import codecs
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from python_tests.support.event_files import (
    BY_FILE,
    BY_TIME,
    EVENTS,
    UNFILTERED,
    fails,
    histories,
    lines,
    read,
)
from recgrela.data import DataConfig, load, load_table, parts
from recgrela.data.__main__ import main
from recgrela.data.formats import pieces
from recgrela.data.packed import open_packed
from recgrela.system.errors import ConfigError, DataError

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
