"""CSV and Parquet files with named columns."""

from __future__ import annotations

import pyarrow as pa
from pyarrow import parquet

from recgrela.data.formats.columns import Arrays, Columns, Names, find_columns, to_arrays, value_fault
from recgrela.data.formats.source import Source
from recgrela.data.formats.text import header_layout, read_events
from recgrela.settings.data import DataConfig
from recgrela.system.arrow import without_views
from recgrela.system.errors import DataError


def read_csv(data: pa.Buffer, source: Source, name: str, config: DataConfig) -> tuple[Arrays, dict[str, str]]:
    """Events of a comma-separated file with a header; values may be quoted."""
    label = source.label(name)
    return read_events(data, label, header_layout(data, label, ",", quoted=True), column_names(config)), {}


def read_parquet(
    data: pa.Buffer, source: Source, name: str, config: DataConfig
) -> tuple[Arrays, dict[str, str]]:
    """Events of a Parquet file: ids are integers or strings; times are numbers, dates or timestamps."""
    label, names = source.label(name), column_names(config)
    try:
        file = parquet.ParquetFile(pa.BufferReader(data))
        find_columns(label, file.schema_arrow.names, names)
        table = file.read(columns=list(names))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{label}: not a Parquet file, or damaged ({str(error).splitlines()[0]})") from None
    return table_arrays(table, label, names), {}


def table_arrays(table: pa.Table, label: str, names: Names) -> Arrays:
    """Events of a table with the columns `names`: ids are integers or strings; times as in `read_parquet`.

    Raises:
        DataError: a column or a value is missing or invalid, or there are no events; the message begins with
            `label`.
    """
    find_columns(label, table.column_names, names)
    if table.num_rows == 0:
        raise DataError(f"{label}: the file has no events")
    user, item = (_ids(table[column], label, column) for column in names[:2])
    columns = Columns(user, item, _times(table[names.time], label, names.time))
    arrays = to_arrays(columns)
    if isinstance(arrays, Arrays):
        return arrays
    values = (column[arrays].as_py() for column in columns)
    fault = value_fault(names, *("" if value is None else str(value) for value in values))
    raise DataError(f"{label}, row {arrays + 1}, {fault}")


def column_names(config: DataConfig) -> Names:
    return Names(config.user_column, config.item_column, config.time_column)


def _ids(column: pa.ChunkedArray, label: str, name: str) -> pa.ChunkedArray:
    column = without_views(column)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)  # a unified dictionary may not fit the code type
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{label}, column {name!r}: ids must be integers or strings, not {kind}")
    return column


def _times(column: pa.ChunkedArray, label: str, name: str) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_floating(kind):
        return column.cast(pa.float64())
    if pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date64(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:  # unsigned, above 2^63
            raise DataError(f"{label}, column {name!r}: {str(error).splitlines()[0]}") from None
    if pa.types.is_date32(kind):
        return column.cast(pa.int32()).cast(pa.int64())
    raise DataError(f"{label}, column {name!r}: times must be numbers, dates or timestamps, not {kind}")
