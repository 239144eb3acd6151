"""Every format gives the same events, in any order of columns and in any container."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import json
import zipfile
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pytest
from pyarrow import parquet

from recgrela.data import DataConfig, load, load_table
from recgrela.data.formats import FORMATS
from recgrela.settings.data import Format

# user, item, rating, time: user b comes first in the file, a's events are out of order.
EVENTS = [
    ("b", "20", 3, 50),
    ("a", "10", 5, 300),
    ("a", "20", 4, 100),
    ("b", "10", 1, 60),
    ("a", "30", 2, 200),
]
NUMBERED = [({"a": "7", "b": "9"}[user], item, rating, time) for user, item, rating, time in EVENTS]


def read(path: Path, **settings):
    return load(DataConfig(path=str(path), min_user_events=0, min_item_events=0, **settings))


def check(data, users=("b", "a"), titles=None):
    assert data.user_ids == list(users)
    assert data.item_ids == ["[PAD]", "20", "10", "30"]
    assert data.offsets.tolist() == [0, 2, 5]
    assert data.items.tolist() == [1, 2, 1, 3, 2]  # b: 20 10; a, by time: 20 30 10
    assert data.n_items == 4 and data.n_users == 2 and data.n_events == 5
    assert data.titles == titles
    json.dumps(data.description)
    assert (data.description["users"], data.description["items"], data.description["events"]) == (3, 4, 5)


def recbole(columns=("user_id:token", "item_id:token", "rating:float", "timestamp:float")) -> str:
    row = {"user_id:token": 0, "item_id:token": 1, "rating:float": 2, "timestamp:float": 3, "extra:token": 0}
    lines = ["\t".join(columns)] + ["\t".join(str(event[row[c]]) for c in columns) for event in EVENTS]
    return "\n".join(lines) + "\n"


def test_recbole_plain_and_gzip_have_one_hash(tmp_path):
    (tmp_path / "x.inter").write_text(recbole())
    (tmp_path / "y.inter.gz").write_bytes(gzip.compress(recbole().encode()))
    plain, packed = read(tmp_path / "x.inter"), read(tmp_path / "y.inter.gz")
    check(plain)
    check(packed)
    assert plain.sha256 == packed.sha256 == hashlib.sha256(recbole().encode()).hexdigest()
    assert plain.description["format"] == "recbole"


@pytest.mark.parametrize(
    "columns",
    [
        ("timestamp:float", "item_id:token", "user_id:token"),
        ("extra:token", "rating:float", "item_id:token", "timestamp:float", "extra:token", "user_id:token"),
    ],
)
def test_recbole_column_order_and_extra_columns(tmp_path, columns):
    (tmp_path / "x.inter").write_text(recbole(columns))
    check(read(tmp_path / "x.inter"))


def test_recbole_other_column_names(tmp_path):
    (tmp_path / "x.inter").write_text(recbole().replace("item_id:", "artist_id:"))
    check(read(tmp_path / "x.inter", item_column="artist_id"))


@pytest.mark.parametrize("text", [recbole().replace("\n", "\r\n"), recbole() + "\n\n", "\ufeff" + recbole()])
def test_line_ends_blank_lines_and_byte_order_mark(tmp_path, text):
    (tmp_path / "x.inter").write_bytes(text.encode())
    check(read(tmp_path / "x.inter"))


def test_last_line_without_line_end(tmp_path):
    (tmp_path / "x.inter").write_text(recbole().rstrip())
    check(read(tmp_path / "x.inter"))


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("title", ["movie_title", "title", "name"])
def test_recbole_titles(tmp_path, title, gz):
    (tmp_path / "x.inter").write_text(recbole())
    header = f"item_id:token\t{title}:token_seq\tgenre:token_seq\n"
    item = f'{header}10\tTen "é"\tComedy\n30\tThirty\tDrama\n'.encode()
    (tmp_path / ("x.item.gz" if gz else "x.item")).write_bytes(gzip.compress(item) if gz else item)
    (tmp_path / "other.item").write_text("item_id:token\ttitle:token\n20\twrong file\n")
    check(read(tmp_path / "x.inter"), titles=[None, None, 'Ten "é"', "Thirty"])


def test_recbole_item_file_without_titles(tmp_path):
    (tmp_path / "x.inter").write_text(recbole())
    (tmp_path / "x.item").write_text("item_id:token\tprice:float\n10\t5\n")
    check(read(tmp_path / "x.inter"))


def test_titles_are_tidied(tmp_path):
    files = movielens("u")
    (tmp_path / "u.data").write_bytes(files["u.data"])
    item = f"10|  Ten \t(1995) |d||url{'|0' * 19}\n30|  |||{'|0' * 19}\n"
    (tmp_path / "u.item").write_bytes(b"\xef\xbb\xbf" + item.encode())
    check(read(tmp_path), ("9", "7"), titles=[None, None, "Ten (1995)", None])


def test_names_in_capitals(tmp_path):
    (tmp_path / "X.INTER.GZ").write_bytes(gzip.compress(recbole().encode()))
    (tmp_path / "X.ITEM").write_text("item_id:token\ttitle:token\n20\tTwenty\n")
    check(read(tmp_path / "X.INTER.GZ"), titles=[None, "Twenty", None, None])
    lines = ["user_id,item_id,timestamp", *(f"{u},{i},{t}" for u, i, _, t in EVENTS)]
    (tmp_path / "X.CSV.GZ").write_bytes(gzip.compress("\n".join(lines).encode()))
    check(read(tmp_path / "X.CSV.GZ"))


def movielens(kind: str) -> dict[str, bytes]:
    """The files of a MovieLens release, by name."""
    if kind == "csv":
        ratings = "userId,movieId,rating,timestamp\n" + "".join(
            f"{u},{i},{r}.5,{t}\n" for u, i, r, t in NUMBERED
        )
        movies = 'movieId,title,genres\n10,"Ten, the (1995)",Comedy\n30,Amélie,Drama\n'
        return {
            "ratings.csv": ratings.encode(),
            "movies.csv": movies.encode(),
            "tags.csv": b"userId,tag\n1,fun\n",
        }
    if kind == "dat":
        ratings = "".join(f"{u}::{i}::{r}::{t}\n" for u, i, r, t in NUMBERED)
        movies = "10::Ten, the (1995)::Comedy\n30::Amélie::Drama\n"
        return {
            "ratings.dat": ratings.encode(),
            "movies.dat": movies.encode("latin-1"),
            "users.dat": b"7::F::1\n",
        }
    ratings = "".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in NUMBERED)
    movies = f"10|Ten, the (1995)|01-Jan-1995||url{'|0' * 19}\n30|Amélie|||{'|0' * 19}\n"
    return {"u.data": ratings.encode(), "u.item": movies.encode("latin-1"), "u.user": b"7|24|M\n"}


@pytest.mark.parametrize("container", ["file", "folder", "zip", "zip without a folder"])
@pytest.mark.parametrize("kind", ["csv", "dat", "u"])
def test_movielens(tmp_path, kind, container):
    files = movielens(kind)
    if container.startswith("zip"):
        path = tmp_path / "ml.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name if "without" in container else f"ml/{name}", content)
    else:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        path = tmp_path if container == "folder" else tmp_path / next(iter(files))
    data = read(path)
    check(data, ("9", "7"), titles=[None, None, "Ten, the (1995)", "Amélie"])
    assert data.description["format"] == "movielens"
    assert data.sha256 == hashlib.sha256(next(iter(files.values()))).hexdigest()


def test_movies_dat_in_utf8(tmp_path):
    files = movielens("dat")
    (tmp_path / "ratings.dat").write_bytes(files["ratings.dat"])
    (tmp_path / "movies.dat").write_bytes("10::Ten::x\n30::Amélie::x\n".encode())
    check(read(tmp_path), ("9", "7"), titles=[None, None, "Ten", "Amélie"])


@pytest.mark.parametrize("container", ["folder", "zip"])
def test_recbole_in_folder_and_zip(tmp_path, container):
    files = {"x.inter": recbole(), "x.item": "item_id:token\ttitle:token\n20\tTwenty\n"}
    if container == "zip":
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(f"deep/{name}", content)
            archive.writestr("__MACOSX/deep/._x.inter", b"what macOS adds")
    else:
        for name, content in files.items():
            (tmp_path / name).write_text(content)
    data = read(tmp_path / "x.zip" if container == "zip" else tmp_path)
    check(data, titles=[None, "Twenty", None, None])


def test_csv_with_named_columns_quotes_and_line_ends_in_values(tmp_path):
    lines = ['when,note,who,"what, exactly"'] + [
        f'{t},"a ""note"",\nof two lines",{u},"{i}"' for u, i, _, t in EVENTS
    ]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    columns = {"user_column": "who", "item_column": "what, exactly", "time_column": "when"}
    check(read(tmp_path / "log.csv", **columns))
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress((tmp_path / "log.csv").read_bytes()))
    check(read(tmp_path / "log.csv.gz", **columns))
    (tmp_path / "log.txt").write_bytes((tmp_path / "log.csv").read_bytes())
    check(read(tmp_path / "log.txt", format="csv", **columns))


def test_ids_are_text_as_written(tmp_path):
    (tmp_path / "x.csv").write_text(
        "user_id,item_id,timestamp\n01,0x1,1\n1,Nan Goldin,2\n01,nullo,3\n-x,a-1,4\n"
    )
    data = read(tmp_path / "x.csv")
    assert data.user_ids == ["01", "1", "-x"]
    assert data.item_ids[1:] == ["0x1", "Nan Goldin", "nullo", "a-1"]


def test_times_with_fractions_and_beyond_float64(tmp_path):
    (tmp_path / "x.csv").write_text("user_id,item_id,timestamp\nu,a,2.5\nu,b,1e0\nu,c,.25\n")
    assert read(tmp_path / "x.csv").item_ids[1:] == ["a", "b", "c"]
    assert read(tmp_path / "x.csv").items.tolist() == [3, 2, 1]
    base = 1_600_000_000_000_000_000  # nanoseconds: float64 cannot tell these two apart
    (tmp_path / "y.csv").write_text(f"user_id,item_id,timestamp\nu,late,{base + 1}\nu,early,{base}\n")
    assert read(tmp_path / "y.csv").items.tolist() == [2, 1]


def test_a_file_of_several_blocks(tmp_path):
    """The reader takes blocks of 8 MiB: ids have one number in all blocks, and a value may cross a border."""
    events, note = range(400_000), "\n".join("abcdefghijklm")
    with open(tmp_path / "big.csv", "w") as file:  # 18 MB
        file.write("user_id,item_id,timestamp,note\n")
        file.writelines(f'{n % 997},{n * 7919 % 4999},{n},"{note}"\n' for n in events)
    data = read(tmp_path / "big.csv")
    assert data.n_users == 997 and data.n_items == 5000
    row = data.user_row("5")
    items = data.items[data.offsets[row] : data.offsets[row + 1]]
    assert [data.item_ids[item] for item in items] == [str(n * 7919 % 4999) for n in events[5::997]]


ID_TYPES = [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.int64(), pa.uint16()]
TIME_TYPES = [
    pa.int64(),
    pa.int16(),
    pa.float32(),
    pa.float64(),
    pa.timestamp("us"),
    pa.date32(),
    pa.date64(),
]


@pytest.mark.parametrize("time_type", TIME_TYPES, ids=str)
@pytest.mark.parametrize("id_type", ID_TYPES, ids=str)
def test_parquet(tmp_path, id_type, time_type):
    numbers = pa.types.is_integer(id_type)
    users, items, ratings, times = zip(*(NUMBERED if numbers else EVENTS), strict=True)
    if pa.types.is_temporal(time_type):
        times = [datetime.datetime(2020, 1, 1) + datetime.timedelta(days=time) for time in times]
    table = pa.table(
        {
            "timestamp": pa.array(times).cast(time_type),
            "item_id": pa.array(map(int, items) if numbers else items, id_type),
            "rating": ratings,
            "user_id": pa.array(map(int, users) if numbers else users, id_type),
        }
    )
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    check(read(tmp_path / "x.parquet"), ("9", "7") if numbers else ("b", "a"))


VIEW_TYPES = [pa.string_view(), pa.dictionary(pa.int8(), pa.string_view())]


@pytest.mark.parametrize("id_type", VIEW_TYPES, ids=str)
def test_tables_with_string_views(id_type: pa.DataType) -> None:
    """Polars exports such columns."""
    users, items, _, times = zip(*EVENTS, strict=True)

    def column(values: tuple[str, ...]) -> pa.ChunkedArray:
        parts = [pa.array(part) for part in (values[:2], values[2:], ())]
        if pa.types.is_dictionary(id_type):
            parts = [part.cast(pa.string()).dictionary_encode() for part in parts]
        return pa.chunked_array([part.cast(id_type) for part in parts], id_type)

    table = pa.table({"user_id": column(users), "item_id": column(items), "timestamp": times})
    check(load_table(table, DataConfig(min_user_events=0, min_item_events=0)))


def test_the_setting_names_every_format() -> None:
    assert set(get_args(Format)) == {"auto", *FORMATS}
