"""Invalid Parquet files and tables give a one-line error that names row and column."""

from __future__ import annotations

import pyarrow as pa
import pytest
from pyarrow import parquet

from python_tests.data.test_bad_input import NO_TIME, fails
from recgrela.data import DataConfig, load, load_table
from recgrela.system.errors import DataError


def test_parquet(tmp_path):
    path = tmp_path / "x.parquet"

    def table_fails(expected: str, **columns) -> None:
        good = {"user_id": ["a", "b", "c"], "item_id": [1, 2, 3], "timestamp": [1.0, 2.0, 3.0]}
        table = {name: value for name, value in (good | columns).items() if value is not None}
        parquet.write_table(pa.table(table), path, row_group_size=2)
        fails(path, expected)

    fix = "set data.time_column, or keep the order of the file with --data.order file"
    table_fails(f": no column 'timestamp' among 'user_id', 'item_id'; {fix}", timestamp=None)
    out_of_range = "1e+19 is out of range; times must be between -2^63 and 2^63"
    table_fails(f", row 2, column 'timestamp': {out_of_range}", timestamp=[1, 1e19, 3])
    table_fails(", row 2, column 'timestamp': 'nan' is not a finite number", timestamp=[1, float("nan"), 3])
    table_fails(", row 1, column 'timestamp': '' is not a finite number", timestamp=[None, 2, 3])
    kinds = "times must be numbers, dates or timestamps"
    table_fails(f", column 'timestamp': {kinds}, not bool", timestamp=[True, False, True])
    table_fails(f", row 1, column 'timestamp': 'x' {NO_TIME}", timestamp=["x", "2020-01-01", "z"])
    not_iso = "is not an ISO 8601 date or time without a time zone, as the first one"
    times = ["2020-01-01", "", "2020-01-01 10:00"]
    table_fails(f", row 2, column 'timestamp': '' {not_iso}", timestamp=times)
    whole = "is not a whole number; ids are texts or whole numbers"
    table_fails(f", row 2, column 'item_id': 2.5 {whole}", item_id=[1.0, 2.5, 3.0])
    table_fails(": the file has no events", user_id=[], item_id=[], timestamp=[])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"x\.parquet: not a Parquet file, or damaged"):
        load(DataConfig(path=str(path)))


@pytest.mark.parametrize("dictionary", [False, True])
def test_parquet_that_is_not_utf8(tmp_path, dictionary):
    path = tmp_path / "x.parquet"
    table = pa.table({"user_id": ["QQQQ", "b"] * 9, "item_id": ["c"] * 18, "timestamp": range(18)})
    parquet.write_table(table, path, compression="none", use_dictionary=dictionary, write_statistics=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"QQQQ", b"\xff\xfe\xff\xfe"))
    with pytest.raises(DataError, match=r"x\.parquet: damaged \(.*Invalid UTF8"):
        load(DataConfig(path=str(path)))


def test_tables_with_contents_out_of_range():
    """A table of a program may have an index of a dictionary beyond its values."""
    indices = pa.array([0, 7], pa.int32())
    users = pa.DictionaryArray.from_arrays(indices, pa.array(["a", "b"]), safe=False)
    table = pa.table({"user_id": users, "item_id": ["c", "d"], "timestamp": [1, 2]})
    with pytest.raises(DataError, match=r"the table of events: damaged \(.*out of bounds"):
        load_table(table, DataConfig())
