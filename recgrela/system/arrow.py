"""Arrow tables from any library, and their columns as types that all of Arrow's functions take."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recgrela.system.errors import DataError
from recgrela.system.text import one_line


def to_table(data: Any, what: str) -> pa.Table:
    """A table of any library as an Arrow table, without a copy where the library has Arrow's memory.

    Args:
        data: an object with ``__arrow_c_stream__`` or ``__arrow_c_array__`` (of pandas, polars, DuckDB,
            pyarrow), a pyarrow dataset, or what ``pyarrow.table`` takes, such as a dictionary of columns.
        what: the beginning of a message about it.

    Raises:
        DataError: the object is no table, or a column cannot be converted.
    """
    try:
        if isinstance(data, pa.Table):
            return data
        if type(data).__module__ == "pyarrow._dataset":
            return data.to_table()
        if hasattr(data, "__arrow_c_stream__"):
            return pa.RecordBatchReader.from_stream(data).read_all()
        if hasattr(data, "__arrow_c_array__"):
            return pa.Table.from_batches([pa.record_batch(data)])
        return pa.table(data)
    except (TypeError, ValueError, pa.ArrowException) as error:
        fix = "give one of pyarrow, pandas, polars or DuckDB, or a dictionary of columns"
        raise DataError(f"{what}: {one_line(error)}; {fix}") from error


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of a type that all of Arrow's functions take, with the same values.

    Extension types such as UUIDs become their storage, run-end encoding is expanded, and views, half floats
    and small decimals become the usual types, also as the values of a dictionary.
    """
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        chunks = [chunk.storage for chunk in column.chunks]
        return plain(pa.chunked_array(chunks, kind.storage_type))
    if pa.types.is_run_end_encoded(kind):
        chunks = [pc.run_end_decode(chunk) for chunk in column.chunks]
        return plain(pa.chunked_array(chunks, kind.value_type))
    if pa.types.is_dictionary(kind):
        usual = _usual(kind.value_type)
        return column if usual is None else column.cast(pa.dictionary(kind.index_type, usual, kind.ordered))
    usual = _usual(kind)
    return column if usual is None else column.cast(usual)


def values_type(column: pa.ChunkedArray) -> pa.DataType:
    """The type of a column's values, for a dictionary that of what its indices stand for."""
    return column.type.value_type if pa.types.is_dictionary(column.type) else column.type


def _usual(kind: pa.DataType) -> pa.DataType | None:
    """The usual type with the same values; None for a type that is one."""
    name = str(kind)  # pyarrow 15 has types for which it has no functions
    if name == "string_view":
        return pa.large_string()
    if name == "binary_view":
        return pa.large_binary()
    if pa.types.is_float16(kind):
        return pa.float32()
    if name.startswith(("decimal32", "decimal64")):
        return pa.decimal128(kind.precision, kind.scale)
    return None
