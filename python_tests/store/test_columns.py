"""Tables of events: types, and faults with the name of the column or row."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa
import pytest

from recgrela.store import Event, SQLiteStore, Store, open_store
from recgrela.system.errors import ConfigError, DataError, RunError

VIEWS = pa.dictionary(pa.int32(), pa.string_view())
GOOD = {"user": ["u", "v"], "item": ["a", "b"], "time": [1.0, 2.0]}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store.db") as store:
        yield store


@pytest.mark.parametrize(
    "columns",
    [
        GOOD,
        GOOD | {"id": [None, None]},
        GOOD | {"id": pa.nulls(2)},
        GOOD | {"user": pa.array(["u", "v"]).dictionary_encode()},
        {name: pa.array(GOOD[name], pa.string_view()) for name in ("user", "item")} | {"time": [1, 2]},
        GOOD | {"id": pa.array([None, None], pa.string_view())},
        GOOD | {"user": pa.array(["u", "v"]).dictionary_encode().cast(VIEWS)},
        GOOD | {"user": pa.array(["u", "v"], pa.large_string()), "time": pa.array([1, 2], pa.int16())},
        GOOD | {"time": pa.array([1_000, 2_000], pa.timestamp("ms", "UTC"))},
        GOOD | {"time": [datetime(1970, 1, 1, 0, 0, s, tzinfo=timezone.utc) for s in (1, 2)]},
    ],
)
def test_types_of_columns(store: Store, columns: dict) -> None:
    assert store.append_table(pa.table(columns)) == 2
    assert store.history("u") == [Event("u", "a", 1.0, None)]
    assert store.history("v") == [Event("v", "b", 2.0, None)]


def test_integer_ids_and_fractions_of_seconds(store: Store) -> None:
    table = pa.table({"user": [7], "item": [8], "time": pa.array([1_500_000_000_250], pa.timestamp("ms"))})
    assert store.append_table(table.to_batches()[0]) == 1
    assert store.history("7") == [Event("7", "8", 1_500_000_000.25, None)]


def test_an_empty_table(store: Store) -> None:
    assert store.append_table(pa.table(GOOD).slice(0, 0)) == 0
    assert store.import_events([]) == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": ["u"], "time": [1.0]}, "has no column item"),
        (GOOD | {"ID": ["1", "2"]}, "column 'ID' of the table of events is unknown or repeated"),
        (GOOD | {"user": ["u", None]}, "row 1 of the table of events: user is null or empty"),
        (GOOD | {"item": ["a", ""]}, "row 1 of the table of events: item is null or empty"),
        (GOOD | {"id": ["1", ""]}, "row 1 of the table of events: id is null or empty"),
        (GOOD | {"time": [1.0, float("nan")]}, "row 1 of the table of events: time is null or not finite"),
        (GOOD | {"time": [None, 2.0]}, "row 0 of the table of events: time is null or not finite"),
        (GOOD | {"time": ["1", "2"]}, "column time of the table of events is string; it must be a number or"),
        (GOOD | {"user": [1.5, 2.5]}, "column user of the table of events is double; it must be text or"),
        (GOOD | {"id": [b"1", b"2"]}, "column id of the table of events is binary; it must be text or"),
        (
            GOOD | {"item": pa.array([b"a", b"\xff"]).view(pa.string())},
            "column item of the table of events: .*UTF8",
        ),
    ],
)
def test_bad_tables_store_nothing(
    store: Store, columns: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recgrela.store.base.ROWS_PER_APPEND", 1)
    with pytest.raises(DataError, match=message):
        store.append_table(pa.table(columns))
    assert list(store.users()) == []


def test_repeated_columns_and_other_objects(store: Store) -> None:
    table = pa.Table.from_arrays(
        [pa.array(["u"])] * 2 + [pa.array([1.0])] * 2, ["user", "item", "time", "time"]
    )
    with pytest.raises(DataError, match="column 'time' of the table of events is unknown or repeated"):
        store.append_table(table)
    with pytest.raises(DataError, match=r"a table of events is a pyarrow\.Table, not dict"):
        store.append_table(GOOD)


def test_errors_of_an_import_say_what_is_stored(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recgrela.store.base.ROWS_PER_APPEND", 1)
    good = pa.table(GOOD)
    with pytest.raises(DataError, match="batch 1: row 0 of the table of events: user is null or empty"):
        store.import_events([good, pa.table({"user": [None, "w"], "item": ["a", "a"], "time": [1, 2]})])
    assert sorted(store.users()) == ["u", "v"]

    append, calls = store._append, []

    def fail_later(columns: tuple) -> list[bool]:
        calls.append(columns)
        if len(calls) == 4:
            raise RunError("no space left")
        return append(columns)

    monkeypatch.setattr(store, "_append", fail_later)
    with pytest.raises(RunError, match="batch 1: no space left; the first 1 rows of the table are stored"):
        store.import_events([good, good])
    assert len(store.history("u")) == 3 and len(store.history("v")) == 2


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in (
        "a.db",
        tmp_path / "a.db",
        f"{tmp_path}/a.db",
        "sqlite:///a.db",
        f"sqlite:///{tmp_path}/a.db",
    ):
        with open_store(url) as store:
            store.append([Event("u", "a", 0.0, None)])
            events = len(store.history("u"))
    assert events == 5
    for url, message in (
        ("sqlite://a.db", "has no path after sqlite:///"),
        ("sqlite:///", "'' is not a path"),
        ("postgres://host/db", "postgres:// is unknown; give a path, sqlite:///path or redis://host:port/db"),
        ("", "'' is not a path"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_store(url)
