"""Rules for single events: missing ids, ratings, duplicates; the same in every format, streamed or not."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from recgrela.data import DataConfig, Interactions, load, load_table, open_packed, parts
from recgrela.data.formats import read_parts
from recgrela.data.parts import pack_parts
from recgrela.data.reading import reading_notes
from recgrela.system.errors import ConfigError, DataError

NAMES = ["user_id", "item_id", "timestamp", "rating"]
# user, item, time, rating
ROWS = [
    ("-39595", "9223372036854775808", 1, 5.0),
    ("NA", "null", 2, 4.0),
    ("", "null", 3, 4.0),
    ("None", "", 4, 3.0),
    ("<NA>", "1", 5, 2.0),
    ("None", "1.0", 5, None),
    ("<NA>", "1", 5, 4.5),
    ("  ", "", 6, 1.0),
]


@pytest.fixture(autouse=True)
def few_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer files while parts are packed, so that the tests are fast."""
    monkeypatch.setattr(parts, "BUCKETS", 3)


def write(path: Path, kind: str, rows: list[tuple]) -> str:
    if kind == "parquet":
        columns = [[None if value == "" else value for value in column] for column in zip(*rows, strict=True)]
        parquet.write_table(pa.table(columns, names=NAMES), path.with_suffix(".parquet"))
        return str(path.with_suffix(".parquet"))
    lines = [NAMES, *([("" if value is None else str(value)) for value in row] for row in rows)]
    separator = "\t" if kind == "inter" else ","
    path.with_suffix(f".{kind}").write_text("\n".join(map(separator.join, lines)) + "\n")
    return str(path.with_suffix(f".{kind}"))


def read(tmp_path: Path, kind: str, **settings) -> Interactions:
    """All rows as one file and as two, which must be the same; the packed form too."""
    settings = {"min_user_events": 0, "min_item_events": 0} | settings
    one = load(DataConfig(path=write(tmp_path / "one", kind, ROWS), **settings))
    paths = [write(tmp_path / f"part{n}", kind, rows) for n, rows in enumerate((ROWS[:6], ROWS[6:]))]
    several = DataConfig(path=paths, **settings)
    pack_parts(read_parts(several), tmp_path / "packed", several)
    for other in (load(several), open_packed(tmp_path / "packed")):
        assert other.packed_sha256() == one.packed_sha256()
        assert (list(other.user_ids), other.item_ids) == (one.user_ids, one.item_ids)
        assert other.dropped_users == one.dropped_users
        assert other.description | {"source": ""} == one.description | {"source": ""}
    return one


def test_the_null_of_hive_is_noted() -> None:
    table = pa.table({"user_id": ["a", "\\N"], "item_id": [1, 2], "timestamp": [1, 2]})
    data = load_table(table, DataConfig(min_user_events=0, min_item_events=0))
    assert data.description["unusual_ids"] == {"\\N": 1}


@pytest.mark.parametrize("kind", ["csv", "inter", "parquet"])
class TestRules:
    def test_empty_ids_are_missing_and_others_are_not(self, tmp_path: Path, kind: str) -> None:
        data = read(tmp_path, kind)
        assert data.user_ids == ["-39595", "NA", "<NA>", "None"]
        assert data.item_ids[1:] == ["9223372036854775808", "null", "1"]
        assert data.description["dropped"] == {"no item id": 1, "no user id": 2}
        assert (data.description["events_read"], data.description["events"]) == (8, 5)
        assert data.description["unusual_ids"] == {"<NA>": 2, "NA": 1, "None": 1, "null": 1}
        assert reading_notes(data.description) == [
            "note: 3 of 8 events are dropped (1 no item id, 2 no user id)",
            "note: taken as ordinary ids: '<NA>' of 2 events, 'NA' of 1 events, 'None' of 1 events, "
            "'null' of 1 events; set data.missing if they stand for no id",
        ]

    def test_spellings_of_missing_ids(self, tmp_path: Path, kind: str) -> None:
        data = read(tmp_path, kind, missing="NA, null,None")
        assert data.user_ids == ["-39595", "<NA>"]
        assert data.description["dropped"] == {"no user id": 5}
        assert data.description["rules"]["missing"] == ["NA", "None", "null"]
        assert data.description["unusual_ids"] == {"<NA>": 2}

    def test_minimum_of_ratings(self, tmp_path: Path, kind: str) -> None:
        data = read(tmp_path, kind, min_rating=4.5)
        assert data.user_ids == ["-39595", "<NA>"] and data.item_ids[1:] == ["9223372036854775808", "1"]
        assert data.description["dropped"]["no rating of at least 4.5"] == 3
        assert data.dropped_users == {"NA", "None"}

    def test_duplicates(self, tmp_path: Path, kind: str) -> None:
        data = read(tmp_path, kind, duplicates="drop")
        assert data.n_events == 4 and data.description["dropped"]["duplicate"] == 1

    def test_filters_come_after_the_rules(self, tmp_path: Path, kind: str) -> None:
        """<NA> has two events of item 1, which are one."""
        with pytest.raises(DataError, match="none of the 4 events are left after filtering"):
            read(tmp_path, kind, duplicates="drop", min_user_events=2)


def test_titles_and_times_of_movielens(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::2::3::4\n1::3::5::4\n")
    data = load(DataConfig(path=str(tmp_path), min_rating=4, min_user_events=0, min_item_events=0))
    assert data.item_ids[1:] == ["3"] and data.description["dropped"] == {"no rating of at least 4": 1}


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("user_id,item_id,timestamp\na,b,1\n", {"min_rating": 4}, "line 1: no column 'rating' among"),
        (
            "user_id,item_id,timestamp,rating\na,b,1,4\na,b,1,good\n",
            {"min_rating": 4},
            "line 3, column 'rating': 'good' is not a number",
        ),
        ("user_id,item_id,timestamp\n,b,1\na,,2\n", {}, "used: 1 have no user id, 1 have no item id"),
    ],
)
def test_errors(tmp_path: Path, text: str, settings: dict, message: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load(DataConfig(path=str(tmp_path / "x.csv"), **settings))


def test_packed_data_have_their_rules(tmp_path: Path) -> None:
    path = write(tmp_path / "x", "csv", ROWS)
    made = DataConfig(path=path, min_user_events=0, min_item_events=0, duplicates="drop")
    pack_parts(read_parts(made), tmp_path / "packed", made)
    with pytest.raises(DataError, match=r"was packed with data\.duplicates 'drop', not 'keep'"):
        load(DataConfig(path=str(tmp_path / "packed"), min_user_events=0, min_item_events=0))


def test_tables_follow_the_rules() -> None:
    table = pa.table({"user_id": ["a", None, "NA"], "item_id": [1, 2, 3], "timestamp": [1, 2, 3]})
    data = load_table(table, DataConfig(missing="NA", min_user_events=0, min_item_events=0))
    assert data.user_ids == ["a"] and data.description["dropped"] == {"no user id": 2}


def test_synthetic_data_have_no_ratings() -> None:
    with pytest.raises(ConfigError, match=r"data\.min_rating: does not apply to synthetic data"):
        load(DataConfig(min_rating=3))


def test_spaces_around_ids_and_numbers_that_are_missing(tmp_path: Path) -> None:
    """The header's names are trimmed, so ids are, too."""
    (tmp_path / "x.csv").write_text("user_id, item_id, timestamp\na, b, 1\n a,b , 2\n-1.0, b, 3\na, -1, 4\n")
    data = load(
        DataConfig(path=str(tmp_path / "x.csv"), missing="-1.0", min_user_events=0, min_item_events=0)
    )
    assert (data.user_ids, data.item_ids, data.n_events) == (["a"], ["[PAD]", "b"], 2)
    assert data.description["dropped"] == {"no item id": 1, "no user id": 1}
    (tmp_path / "s.inter").write_text("user_id\titem_id\ttimestamp\na\t1.0\t1\n")
    (tmp_path / "s.item").write_text("item_id\tname\n 1\tOne\n")
    found = load(DataConfig(path=str(tmp_path / "s.inter"), min_user_events=0, min_item_events=0))
    assert found.titles == [None, "One"]
    table = pa.table({"user_id": [" a", "a "], "item_id": ["b", " b\t"], "timestamp": [1, 2]})
    assert load_table(table, DataConfig(min_user_events=0, min_item_events=0)).user_ids == ["a"]
