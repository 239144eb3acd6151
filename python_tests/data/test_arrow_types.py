"""Every Arrow type that holds ids or times, in tables and files, and tables of any library."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyarrow import dataset, feather, ipc, parquet

from recgrela.data import DataConfig, Interactions, load, load_table
from recgrela.data.load import read_table
from recgrela.system.errors import DataError

ALL = DataConfig(min_user_events=0, min_item_events=0)
TEXTS = ["é", "x"]


def encoded(values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(values, kind).dictionary_encode()


SIGNED = (pa.int8(), pa.int16(), pa.int32(), pa.int64())
UNSIGNED = (pa.uint8(), pa.uint16(), pa.uint32())
# column -> its ids
IDS: dict[str, tuple[pa.Array, list[str]]] = {
    **{str(kind): (pa.array([7, 0], kind), ["7", "0"]) for kind in SIGNED},
    **{str(kind): (pa.array([7, 9], kind), ["7", "9"]) for kind in UNSIGNED},
    "above 2^63": (pa.array([2**63, 2**64 - 1], pa.uint64()), [str(2**63), str(2**64 - 1)]),
    "negative": (pa.array([-39595, -(2**63)]), ["-39595", str(-(2**63))]),
    "float": (pa.array([1.0, -2.0]), ["1", "-2"]),
    "float32": (pa.array([1.0, 16777216], pa.float32()), ["1", "16777216"]),
    "float16": (pa.array([1.0, 3.0], pa.float16()), ["1", "3"]),
    "decimal128": (pa.array([Decimal("5.00"), Decimal(-7)], pa.decimal128(9, 2)), ["5", "-7"]),
    "decimal256": (pa.array([Decimal(10**40), Decimal(2)], pa.decimal256(50, 0)), [str(10**40), "2"]),
    "int128": (pa.array([Decimal(10**30), Decimal(2)], pa.decimal128(38, 0)), [str(10**30), "2"]),
    "string": (pa.array(TEXTS), TEXTS),
    "large_string": (pa.array(TEXTS, pa.large_string()), TEXTS),
    "string_view": (pa.array(TEXTS, pa.string_view()), TEXTS),
    "binary": (pa.array([text.encode() for text in TEXTS]), TEXTS),
    "large_binary": (pa.array([text.encode() for text in TEXTS], pa.large_binary()), TEXTS),
    "binary_view": (pa.array([text.encode() for text in TEXTS], pa.binary_view()), TEXTS),
    "uuid": (
        pa.array([bytes([1]) * 16, bytes(range(16))], pa.binary(16)),
        ["01010101-0101-0101-0101-010101010101", "00010203-0405-0607-0809-0a0b0c0d0e0f"],
    ),
    "fixed binary": (pa.array([b"\xff\x00", b"ab"], pa.binary(2)), ["ff00", "6162"]),
    "dictionary": (encoded(TEXTS, pa.string()), TEXTS),
    "dictionary of ints": (encoded([5, 4], pa.int64()), ["5", "4"]),
    "dictionary of floats": (encoded([5.0, 4.0], pa.float64()), ["5", "4"]),
    "dictionary of binary": (encoded([text.encode() for text in TEXTS], pa.binary()), TEXTS),
    "run-end encoded": (pc.run_end_encode(pa.array(TEXTS)), TEXTS),
    "run-end encoded ints": (pc.run_end_encode(pa.array([3, 4])), ["3", "4"]),
    "text with a fraction of zeros": (pa.array(["1.0", "01.00"]), ["1", "01"]),
}
DAY = datetime.datetime(2020, 2, 29)
DAYS = [DAY, DAY - datetime.timedelta(1)]
# columns of a later and an earlier time
TIMES: dict[str, pa.Array] = {
    **{str(kind): pa.array([9, 3], kind) for kind in (pa.int8(), pa.uint64(), pa.float32(), pa.float16())},
    **{f"timestamp {unit}": pa.array(DAYS, pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")},
    "zone": pa.array(DAYS, pa.timestamp("us", "Asia/Tokyo")),
    "date32": pa.array([day.date() for day in DAYS]),
    "date64": pa.array([day.date() for day in DAYS], pa.date64()),
    **{f"duration {unit}": pa.array([9, 3], pa.duration(unit)) for unit in ("s", "ns")},
    "decimal": pa.array([Decimal("1.5"), Decimal("1.25")]),
    "whole decimal": pa.array([Decimal(2**60 + 1), Decimal(2**60)], pa.decimal128(38, 0)),
    "dictionary": encoded([9, 3], pa.int64()),
    "run-end encoded": pc.run_end_encode(pa.array([9, 3])),
}


def table(**columns: Any) -> pa.Table:
    return pa.table({"user_id": ["u", "u"], "item_id": ["i", "j"], "timestamp": [1, 2]} | columns)


def read(made: pa.Table, container: str, folder: Path) -> Interactions:
    """The table, by way of a file."""
    if container == "table":
        return load_table(made, ALL)
    path = folder / f"x.{container}"
    if container == "parquet":
        parquet.write_table(made, path)
    elif container == "feather":
        feather.write_feather(made, path, compression="zstd")
    else:
        with ipc.new_stream(path, made.schema) as writer:
            writer.write_table(made, max_chunksize=1)
    return load(DataConfig(path=str(path), min_user_events=0, min_item_events=0))


def can_hold(container: str, column: pa.Array) -> bool:
    """Whether a file can have the type: Parquet has neither run ends nor, by this writer, some views."""
    if container == "parquet":
        try:
            parquet.write_table(pa.table({"x": column}), pa.BufferOutputStream())
        except pa.ArrowException:
            return False
    return True


@pytest.mark.parametrize("container", ["table", "parquet", "feather", "arrows"])
@pytest.mark.parametrize("kind", IDS)
def test_ids(tmp_path: Path, kind: str, container: str) -> None:
    column, expected = IDS[kind]
    if not can_hold(container, column):
        pytest.skip(f"{container} files do not hold {column.type}")
    data = read(table(user_id=column, item_id=column), container, tmp_path)
    assert data.user_ids == expected and data.item_ids[1:] == expected


@pytest.mark.parametrize("container", ["table", "parquet", "feather"])
@pytest.mark.parametrize("kind", TIMES)
def test_times(tmp_path: Path, kind: str, container: str) -> None:
    if not can_hold(container, TIMES[kind]):
        pytest.skip(f"{container} files do not hold {TIMES[kind].type}")
    assert read(table(timestamp=TIMES[kind]), container, tmp_path).items.tolist() == [2, 1]


def test_int96_times_of_old_parquet_files(tmp_path: Path) -> None:
    made = table(timestamp=TIMES["timestamp us"])
    parquet.write_table(made, tmp_path / "x.parquet", use_deprecated_int96_timestamps=True)
    data = load(DataConfig(path=str(tmp_path / "x.parquet"), min_user_events=0, min_item_events=0))
    assert data.items.tolist() == [2, 1]


def test_units_of_times() -> None:
    seconds = int(DAY.replace(tzinfo=datetime.timezone.utc).timestamp())
    units = {"timestamp s": 1, "timestamp ns": 10**9, "zone": 10**6, "date32": 1, "date64": 1}
    for kind, ticks in units.items():
        events = read_table(table(timestamp=TIMES[kind]), ALL)
        assert (events.ticks, int(events.times[0])) == (ticks, seconds * ticks), kind
    assert read_table(table(), ALL).ticks is None


def test_missing_and_equal_ids() -> None:
    columns = {"timestamp": [1, 2, 3, 4], "item_id": ["1", "1.0", "1.00", "2"]}
    data = load_table(table(user_id=[1.0, None, float("nan"), 1.0], **columns), ALL)
    assert (data.user_ids, data.item_ids[1:], data.items.tolist()) == (["1"], ["1", "2"], [1, 2])
    twice = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3]), pa.array(["1", "1.0", None, ""]))
    data = load_table(table(user_id=twice, **columns), ALL)
    assert (data.user_ids, data.n_events, data.dropped_users) == (["1"], 2, frozenset())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": [1.0, 2.5]}, "row 2, column 'user_id': 2.5 is not a whole number; ids are texts"),
        ({"user_id": [1.0, float("inf")]}, "row 2, column 'user_id': inf is"),
        ({"user_id": [1.0, 2.0**53 + 2]}, "is too large for a float to be exact, so ids were lost"),
        ({"item_id": [Decimal("1.5"), Decimal(1)]}, r"row 1, column 'item_id': Decimal\('1.5'\) is not a"),
        ({"item_id": [b"a", b"\xff"]}, "row 2, column 'item_id': b'\\\\xff' is not UTF-8 text"),
        ({"item_id": [[1], [2]]}, "column 'item_id': a row has several values .*; write one event a row"),
        ({"item_id": [{"a": 1}, {"a": 2}]}, "column 'item_id': a row has several values"),
        ({"item_id": [True, False]}, "column 'item_id': ids must be texts or whole numbers, not bool"),
        ({"item_id": [DAY, DAY]}, "column 'item_id': ids must be texts or whole numbers, not timestamp"),
        ({"timestamp": [[1], [2]]}, "'timestamp': times must be numbers, dates or timestamps, not list"),
        ({"timestamp": [datetime.time(1), datetime.time(2)]}, "not time64.*; add the date"),
        ({"timestamp": pa.nulls(2)}, "row 1, column 'timestamp': '' is not a finite number"),
        ({"user_id": pa.nulls(2)}, "no event can be used: 2 have no user id"),
    ],
)
def test_errors(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_table(table(**columns), ALL)


class Stream:
    """A table of a library that pyarrow does not know."""

    def __init__(self, made: pa.Table) -> None:
        self._made = made

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._made.__arrow_c_stream__(requested_schema)


class Batch:
    """A batch of such a library."""

    def __init__(self, made: pa.Table) -> None:
        (self._made,) = made.to_batches()

    def __arrow_c_array__(self, requested_schema: object = None) -> object:
        return self._made.__arrow_c_array__(requested_schema)


def first_batch(made: pa.Table) -> pa.RecordBatch:
    return made.to_batches()[0]


@pytest.mark.parametrize(
    "wrap",
    [Stream, Batch, pa.Table.to_reader, dataset.dataset, first_batch, pa.Table.to_pydict],
    ids=["stream", "batch", "reader", "dataset", "record batch", "dictionary"],
)
def test_tables_of_any_library(wrap: Any) -> None:
    made = table(user_id=pa.array(["a", "b"], pa.string_view()))
    data = load_table(wrap(made), ALL)
    assert data.user_ids == ["a", "b"] and data.sha256 == load_table(made, ALL).sha256


def test_other_objects_are_no_tables() -> None:
    with pytest.raises(DataError, match="the table of events: not a table that Arrow reads: "):
        load_table(5, ALL)


def test_damaged_arrow_files(tmp_path: Path) -> None:
    path = tmp_path / "x.feather"
    feather.write_feather(table(), path)
    content = path.read_bytes()
    for damaged in (content[:-20], content[:200], b"ARROW1", b"", b"nonsense"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.feather: not an Arrow file, or damaged \("):
            load(DataConfig(path=str(path)))
    feather.write_feather(table().drop_columns("item_id"), path)
    with pytest.raises(DataError, match=r"x\.feather: no column 'item_id' among 'user_id', 'timestamp'"):
        load(DataConfig(path=str(path)))
