"""Events that callers give: paths, and tables of any library."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from python_tests.data.test_arrow_types import Stream
from recgrela.data import DataConfig, load, load_table
from recgrela.inference.arguments import to_events, to_id
from recgrela.inference.training import store_events
from recgrela.system.errors import DataError

CONFIG = DataConfig(min_user_events=0, min_item_events=0, min_rating=3, rating_column="stars")
TABLE = pa.table(
    {
        "user_id": pa.array(["a", "a", "b"], pa.string_view()),
        "item_id": [2**63, 1, 2],
        "timestamp": pa.array([3, 2, 1], pa.duration("s")),
        "stars": [5, 4, 1],
        "other": [[1], [2], [3]],
    },
    schema=pa.schema(
        {
            "user_id": pa.string_view(),
            "item_id": pa.uint64(),
            "timestamp": pa.duration("s"),
            "stars": pa.int8(),
            "other": pa.list_(pa.int64()),
        }
    ),
)


def test_paths_and_tables() -> None:
    assert to_events(Path("a.csv")) == "a.csv"
    assert to_events([Path("a.csv"), "b.csv"]) == ["a.csv", "b.csv"]
    assert to_events(Stream(TABLE)).equals(TABLE)
    with pytest.raises(DataError, match="the events are neither a path nor a table: "):
        to_events([5])


def test_a_table_is_stored_with_the_columns_that_are_read(tmp_path: Path) -> None:
    path = store_events(to_events(Stream(TABLE)), CONFIG, tmp_path)
    stored = load(DataConfig(**vars(CONFIG) | {"path": str(path)}))
    given = load_table(Stream(TABLE), CONFIG)
    assert given.item_ids[1:] == [str(2**63), "1"] == stored.item_ids[1:]
    assert stored.packed_sha256() == given.packed_sha256()
    assert stored.description["dropped"] == given.description["dropped"]


def test_a_stored_table_is_not_that_of_other_columns(tmp_path: Path) -> None:
    """The same events with other names, or with times of another type, are another file."""
    table = TABLE.select(["user_id", "item_id", "timestamp"])
    seconds = table.set_column(2, "timestamp", table["timestamp"].cast(pa.int64()))
    renamed = DataConfig(user_column="u", item_column="i", time_column="t")
    paths = {
        store_events(table, DataConfig(), tmp_path),
        store_events(seconds, DataConfig(), tmp_path),
        store_events(table.rename_columns(["u", "i", "t"]), renamed, tmp_path),
    }
    assert len(paths) == 3
    names = {tuple(pq.read_schema(path).names) for path in paths}
    assert names == {("u", "i", "t"), tuple(table.column_names)}


def test_ids_are_written_as_in_the_data() -> None:
    assert [to_id(value, "x") for value in (1, 1.0, "1.0", "01", "a", -7)] == ["1", "1", "1", "01", "a", "-7"]
