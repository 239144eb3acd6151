"""Invalid input gives a one-line error that names file, line and column."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import pytest

from recgrela.data import DataConfig, load
from recgrela.data.formats import FORMATS
from recgrela.system.errors import ConfigError, DataError
from recgrela.system.text import printable

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


NO_TIME = (
    "is neither a finite number nor an ISO 8601 date or time; give their format with --data.time_format, or "
    "keep the order of the file with --data.order file"
)


def known_files() -> str:
    """The patterns of file names, as messages list them."""
    patterns = [pattern for known in FORMATS.values() for pattern in known.patterns]
    patterns += [pattern for known in FORMATS.values() for pattern in known.vague]
    return f"known files are {', '.join(patterns)}"


def fails(path, expected: str, **settings) -> None:
    """Loading ``path`` raises DataError with exactly ``<path><expected>``."""
    with pytest.raises(DataError) as caught:
        load(DataConfig(path=str(path), **{"min_user_events": 0, "min_item_events": 0} | settings))
    assert str(caught.value) == f"{printable(str(path))}{expected}"


LINES = {
    "truncated line": ("b\t2\n", ": column 'rating' is missing, 2 of 4 columns (a truncated line?)"),
    "line too long": ("b\t2\t3\t4\t5\n", ": 5 columns, expected 4"),
    "time is text": ("b\t2\t3\tnoon\n", ", column 'timestamp': 'noon' is not a finite number"),
    "time that ends in NUL": (
        "b\t2\t3\t12\0\n",
        ", column 'timestamp': '12\\x00' has a NUL byte; the file is damaged, or not UTF-8",
    ),
    "time that ends in a vertical tab": (
        "b\t2\t3\t12\x0b\n",
        ", column 'timestamp': '12\\x0b' is not a finite number",
    ),
    "time that ends in a separator": (
        "b\t2\t3\t12\x1f\n",
        ", column 'timestamp': '12\\x1f' is not a finite number",
    ),
    "time that ends in a wide space": (
        "b\t2\t3\t12\u2003\n",
        ", column 'timestamp': '12\\u2003' is not a finite number",
    ),
    "long time": (
        f"b\t2\t3\t{'x' * 1000}\n",
        f", column 'timestamp': '{'x' * 100}'... (900 more characters) is not a finite number",
    ),
    "time with trailing text": ("b\t2\t3\t12h\n", ", column 'timestamp': '12h' is not a finite number"),
    "no time": ("b\t2\t3\t\n", ", column 'timestamp': '' is not a finite number"),
    "NaN time": ("b\t2\t3\tNaN\n", ", column 'timestamp': 'NaN' is not a finite number"),
    "infinite time": ("b\t2\t3\tinf\n", ", column 'timestamp': 'inf' is not a finite number"),
    "NA time": ("b\t2\t3\tNA\n", ", column 'timestamp': 'NA' is not a finite number"),
    "hexadecimal time": ("b\t2\t3\t0x10\n", ", column 'timestamp': '0x10' is not a finite number"),
    "time too large": (
        f"b\t2\t3\t{2**63}\n",
        f", column 'timestamp': {2**63} is out of range; times must be between -2^63 and 2^63",
    ),
    "Latin-1 user": (b"Am\xe9lie\t2\t3\t4\n", ", column 'user_id': not UTF-8 text (wrong encoding)"),
    "Latin-1 item": (b"b\t\xe9\t3\t4\n", ", column 'item_id': not UTF-8 text (wrong encoding)"),
}


@pytest.mark.parametrize("fractions", [False, True])
@pytest.mark.parametrize("case", LINES)
def test_bad_line(tmp_path, case, fractions):
    line, expected = LINES[case]
    good = "a\t1\t5\t978300760" + (".5\n" if fractions else "\n")
    content = (HEADER + good * 3 + "\n").encode() + (line if isinstance(line, bytes) else line.encode())
    path = tmp_path / "x.inter"
    path.write_bytes(content + good.encode())
    fails(path, f", line 6{expected}")  # the empty line 5 counts
    path = tmp_path / "y.inter.gz"
    path.write_bytes(gzip.compress(content))
    fails(path, f", line 6{expected}")


def test_first_of_several_bad_lines_is_named(tmp_path):
    (tmp_path / "x.inter").write_text(HEADER + "a\t1\t5\t6\na\t1\t5\t-\na\t1\na\t-1\t5\t6\n")
    fails(tmp_path / "x.inter", ", line 3, column 'timestamp': '-' is not a finite number")


def test_bad_line_late_in_a_big_file(tmp_path):
    line = f"{'a' * 80}\t1\t5\t978300760\n"
    (tmp_path / "x.inter").write_text(HEADER + line * 100_000 + "a\t1\t5\tx\n")  # more than a block of 8 MiB
    fails(tmp_path / "x.inter", ", line 100002, column 'timestamp': 'x' is not a finite number")


def test_a_long_value_of_quoted_csv_is_valid(tmp_path):
    lines = f"user_id,item_id,timestamp,note\na,1,2,{'x' * 200_000}\na,1,noon,x\n"
    (tmp_path / "x.csv").write_text(lines)
    fails(tmp_path / "x.csv", ", line 3, column 'timestamp': 'noon' is not a finite number")


def test_other_columns_are_ignored(tmp_path):
    (tmp_path / "x.inter").write_bytes(HEADER.encode() + b"a\t1\t\xe9\t5\nb\t1\t\t6\n")
    assert (
        load(DataConfig(path=str(tmp_path / "x.inter"), min_user_events=0, min_item_events=0)).n_events == 2
    )


def test_line_of_quoted_csv_counts_lines_inside_values(tmp_path):
    (tmp_path / "x.csv").write_text('user_id,item_id,timestamp,note\na,1,2,"two\nlines"\na,1,noon,x\n')
    fails(tmp_path / "x.csv", ", line 4, column 'timestamp': 'noon' is not a finite number")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_file(tmp_path, content):
    (tmp_path / "x.inter").write_text(content)
    fails(tmp_path / "x.inter", ": empty file")
    (tmp_path / "ratings.dat").write_text(content)
    fails(tmp_path / "ratings.dat", ": empty file")


def test_first_line_is_empty(tmp_path):
    for name in ("x.inter", "x.csv", "ratings.csv"):
        (tmp_path / name).write_text("\n" + HEADER)
        fails(tmp_path / name, ", line 1: empty; expected a header")


@pytest.mark.parametrize("end", ["", "\n\n"])
def test_header_alone(tmp_path, end):
    (tmp_path / "x.inter").write_text(HEADER + end)
    fails(tmp_path / "x.inter", ": the file has no events")


def test_missing_column(tmp_path):
    path = tmp_path / "x.inter"
    path.write_text("user_id:token\titem_id:token\ttimestamps:float\na\t1\t2\n")
    among = "among 'user_id', 'item_id', 'timestamps'"
    fails(path, f", line 1: no column 'timestamp' {among}; did you mean 'timestamps'? set data.time_column")
    path.write_text("a\t1\t5\t978300760\n")
    fix = "name the columns, such as --data.columns user_id,item_id,_,timestamp"
    fails(path, f", line 1: not a header: 'a', '1', '5', '978300760'; {fix}")
    path.write_text("user_id:token\titem_id:token\titem_id:float\ttimestamp:float\na\t1\t2\t3\n")
    fails(path, ", line 1: column 'item_id' occurs 2 times")
    (tmp_path / "ratings.csv").write_text("user,movieId,rating,timestamp\n1,2,3,4\n")
    among = "among 'user', 'movieId', 'rating', 'timestamp'"
    fails(tmp_path / "ratings.csv", f", line 1: no column 'userId' {among}; did you mean 'user'?")


def test_a_general_file_named_as_movielens(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text("user_id,item_id,timestamp\na,1,2\n")
    expected = ", line 1: not a MovieLens header; set data.format=csv to read the file"
    fails(path, expected)
    config = DataConfig(path=str(path), format="csv", min_user_events=0, min_item_events=0)
    assert load(config).user_ids == ["a"]
    path.write_text("who,item_id,timestamp\na,1,2\n")
    fails(path, expected, user_column="who")


@pytest.mark.parametrize(
    ("name", "content", "fix"),
    [
        ("ratings.dat", "1::2::3::4\n", "remove the setting, or set data.format=csv"),
        (
            "ratings.csv",
            "userId,movieId,rating,timestamp\n1,2,3,4\n",
            "remove the setting, or set data.format=csv",
        ),
    ],
)
@pytest.mark.parametrize("setting", ["user_column", "item_column", "time_column", "time_format"])
def test_columns_of_movielens_are_fixed(tmp_path, setting, name, content, fix):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load(DataConfig(path=str(path), **{setting: "x"}))
    why = f"'x' does not apply to {path}: the layout of MovieLens is fixed"
    assert str(caught.value) == f"data.{setting}: {why}; {fix}"


UTF_16 = ": UTF-16 text; convert it to UTF-8, such as with iconv -f UTF-16 -t UTF-8"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x80\x81\n1", ", line 1: not UTF-8 text (wrong encoding, or not a text file)"),
        (HEADER.encode("utf-16"), UTF_16),
        (HEADER.encode("utf-16-le"), UTF_16),
        (HEADER.encode("utf-16-be"), UTF_16),
        (bytes(2 << 20), ": begins with NUL bytes; the file is damaged, or not text"),
        (b"x" * (2 << 20), ", line 1: longer than 1,048,576 bytes; expected a header"),
        (b"<!DOCTYPE html>\n<html>", ": a web page, not data; download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1", ": a pointer of Git LFS, not data; run git lfs pull"),
    ],
)
def test_header_in_another_encoding(tmp_path, content, expected):
    (tmp_path / "x.inter").write_bytes(content)
    fails(tmp_path / "x.inter", expected)


MOVIELENS_LINES = {
    "1::2::3\n": ": column 'Timestamp' is missing, 3 of 4 columns (a truncated line?)",
    "1::2::3::4::5\n": ": 5 columns, expected 4",
    "1::2::3::x\n": ", column 'Timestamp': 'x' is not a finite number",
    "1:7:2::3::4\n": ": column 'Timestamp' is missing, 3 of 4 columns (a truncated line?)",
    "1:NA:2::3::4\n": ": column 'Timestamp' is missing, 3 of 4 columns (a truncated line?)",
    "1::2::3:::4\n": ": ':::' is not clear, as the separator is '::'",
    "1::2:::::3::4\n": ": ':::::' is not clear, as the separator is '::'",
}


@pytest.mark.parametrize("line", MOVIELENS_LINES)
def test_bad_line_of_movielens(tmp_path, line):
    (tmp_path / "ratings.dat").write_text("1::2::3::4\n" * 2 + line)
    fails(tmp_path / "ratings.dat", f", line 3{MOVIELENS_LINES[line]}")
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
        archive.writestr("ml/ratings.dat", "1::2::3::4\n" * 2 + line)
    fails(tmp_path / "ml.zip", f":ml/ratings.dat, line 3{MOVIELENS_LINES[line]}")


def test_byte_order_mark_is_no_part_of_an_id(tmp_path):
    (tmp_path / "ratings.dat").write_text("\ufeff-1::2::3::4\n", encoding="utf-8")
    config = DataConfig(path=str(tmp_path / "ratings.dat"), min_user_events=0, min_item_events=0)
    assert load(config).user_ids == ["-1"]


def test_bad_titles(tmp_path):
    (tmp_path / "x.inter").write_text(HEADER + "a\t1\t5\t6\n")
    path = tmp_path / "x.item"

    def title_fails(content: bytes, expected: str) -> None:
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            load(DataConfig(path=str(tmp_path / "x.inter"), min_user_events=0, min_item_events=0))
        assert str(caught.value) == f"{printable(str(path))}{expected}"

    header = b"item_id:token\ttitle:token\n"
    title_fails(header + b"1\tone\n2\n", ", line 3: column 'title' is missing (a truncated line?)")
    title_fails(header + b"1\t\xe9\n", ", line 2: not UTF-8 text (wrong encoding)")
    title_fails(b"id:token\ttitle:token\n", ", line 1: no column 'item_id' among 'id', 'title'")
    title_fails(b"", ": empty file")


def test_nothing_left_after_filtering(tmp_path):
    (tmp_path / "x.inter").write_text(HEADER + "a\t1\t5\t6\nb\t1\t5\t6\n")
    limits = "min_user_events=2, max_user_events=9, min_item_events=0"
    expected = f": none of the 2 events are left after filtering ({limits})"
    fails(tmp_path / "x.inter", expected, min_user_events=2, max_user_events=9)


def test_looking_up_users(tmp_path):
    (tmp_path / "x.inter").write_text(HEADER + "7\t1\t5\t6\nb\t1\t5\t6\n7\t2\t5\t7\n")
    data = load(DataConfig(path=str(tmp_path / "x.inter"), min_user_events=2, min_item_events=0))
    assert data.user_row("7") == data.user_row(7) == 0
    for look_up, expected in (
        (lambda: data.user_row("b"), "user 'b' has no events left after filtering"),
        (lambda: data.user_row("c"), "user 'c' is not in the data"),
    ):
        with pytest.raises(DataError) as caught:
            look_up()
        assert str(caught.value) == f"{tmp_path / 'x.inter'}: {expected}"


def test_missing_and_unknown_files(tmp_path):
    (tmp_path / "ml-1m.inter.gz").write_bytes(b"")
    fails(tmp_path / "ml-1m.inter", ": no such file or folder; did you mean 'ml-1m.inter.gz'?")
    fails(tmp_path / "nowhere" / "x.inter", ": no such file or folder")
    known = known_files()
    (tmp_path / "x.xml").write_text("<x/>")
    fails(tmp_path / "x.xml", f": unknown format; {known}; or set data.format")
    (tmp_path / "folder").mkdir()
    fails(tmp_path / "folder", f": contains no file of a known format; {known}; or set data.format")
    for name in ("a.inter", "b.inter"):
        (tmp_path / "folder" / name).write_text(HEADER)
    pattern = tmp_path / "folder" / "*.inter"
    fix = f"give the path of one, or a pattern such as '{pattern}' if they are parts of one set"
    fails(tmp_path / "folder", f": contains a.inter, b.inter; {fix}")
    fails(tmp_path / "folder", f": contains a.inter, b.inter; {fix}", format="csv")
    (tmp_path / "my.dat").write_text("1::2::3::4\n")
    expected = ": not a MovieLens file; the format movielens reads ratings.dat, u.data, ratings.csv"
    fails(tmp_path / "my.dat", expected, format="movielens")


def test_many_files_and_many_columns(tmp_path):
    (tmp_path / "many").mkdir()
    for number in range(100):
        (tmp_path / "many" / f"{number:02}x.csv").touch()
    names = ", ".join(f"{number:02}x.csv" for number in range(10))
    with pytest.raises(DataError, match=f"many: contains {names} and 90 more; give the path of one, or"):
        load(DataConfig(path=str(tmp_path / "many")))
    path = tmp_path / "x.csv"
    path.write_text(",".join(f"c{number}" for number in range(10_000)))
    names = ", ".join(f"'c{number}'" for number in range(10))
    fails(path, f", line 1: no column 'user_id' among {names} and 9,990 more; set data.user_column")


def test_file_names_that_are_not_text(tmp_path):
    """Bytes that are not UTF-8, and characters that act on a terminal."""
    for name in (b"a\xff.csv", b"b\x1b[31m\n.csv", "c\u202e.csv".encode()):
        path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
        Path(path).write_text("user_id,item_id,timestamp\na,1,2\n")
        config = DataConfig(path=path, min_user_events=0, min_item_events=0)
        assert load(config).description["source"] == path
        Path(path).write_text("user_id,item_id,timestamp\na,1,x\n")
        fails(path, f", line 2, column 'timestamp': 'x' {NO_TIME}")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_len": 0}, "data.max_len: 0 is below 1"),
        ({"min_user_events": -1}, "data.min_user_events: -1 is below 0"),
        (
            {"max_item_events": 4},
            "data.max_item_events: 4 is below data.min_item_events 5, so no item would remain",
        ),
        (
            {"order": "times"},
            "data.order: 'times' is not one of time, recbole, item, file; did you mean 'time'?",
        ),
        ({"max_len": 2**31}, "data.max_len: 2147483648 is above 2147483647"),
        ({"path": ""}, "data.path: empty; give a file, a folder, a zip or 'synthetic'"),
        (
            {"user_column": "item_id"},
            "data.item_column: 'item_id' is also data.user_column; use two different columns",
        ),
        (
            {"user_column": "timestamp"},
            "data.time_column: 'timestamp' is also data.user_column; use two different columns",
        ),
        ({"synthetic_items": 3}, "data.synthetic_items: 3 is below 20"),
        ({"synthetic_items": 10**9}, "data.synthetic_items: 1000000000 is above 16777216"),
        ({"synthetic_seed": 2**64}, f"data.synthetic_seed: {2**64} is above {2**64 - 1}"),
        (
            {"synthetic_users": 2**30, "synthetic_events": 5},
            "data.synthetic_users: 1073741824 times data.synthetic_events 5 is above 268435456, too much for "
            "memory; lower one of them",
        ),
        (
            {"synthetic_users": 10**6, "synthetic_items": 10**6},
            "data.synthetic_users: 1000000 times data.synthetic_items 1000000 is above 2147483648, too much "
            "for memory; lower one of them",
        ),
    ],
)
def test_wrong_settings(settings, expected):
    with pytest.raises(ConfigError) as caught:
        DataConfig(**settings)
    assert str(caught.value) == expected
