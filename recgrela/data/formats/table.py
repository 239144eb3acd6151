"""Delimited text, Parquet files and tables with named columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from recgrela.data.formats.columns import (
    Arrays,
    Columns,
    Names,
    column_names,
    find_events,
    to_arrays,
    value_fault,
)
from recgrela.data.formats.layout import find_layout
from recgrela.data.formats.parquet import read_columns
from recgrela.data.formats.source import Source
from recgrela.data.formats.text import read_events
from recgrela.data.prepare import by_first_appearance
from recgrela.settings.data import DataConfig
from recgrela.system.arrow import without_views
from recgrela.system.errors import DataError
from recgrela.system.text import one_line, quote


def read_csv(data: pa.Buffer, source: Source, name: str, config: DataConfig) -> tuple[Arrays, dict[str, str]]:
    """Events of delimited text."""
    label, names = source.label(name), column_names(config)
    layout = find_layout(data, label, config, names[:2])
    return read_events(data, label, layout, names, config.time_format), {}


def read_parquet(
    data: pa.Buffer, source: Source, name: str, config: DataConfig
) -> tuple[Arrays, dict[str, str]]:
    """Events of a Parquet file: ids are integers or strings; times are numbers, dates or timestamps."""
    label, names = source.label(name), column_names(config)
    times = [] if names.time is None else [names.time]
    return table_arrays(read_columns(data, label, source.limit, names[:2], times), label, names), {}


def table_arrays(table: pa.Table, label: str, names: Names) -> Arrays:
    """Events of a table with the columns `names`: ids are integers or strings; times as in `read_parquet`.

    Raises:
        DataError: a column or a value is missing or invalid, or there are no events; the message begins with
            `label`.
    """
    find_events(label, table.column_names, names)
    if table.num_rows == 0:
        raise DataError(f"{label}: the file has no events")
    _check_memory(table, label)
    user, item = (_ids(table[column], label, column) for column in names[:2])
    columns = Columns(user, item, _times(table, label, names.time))
    arrays = to_arrays(columns)
    if isinstance(arrays, Arrays):
        return _in_order(arrays, columns)
    values = (column[arrays].as_py() for column in columns)
    fault = value_fault(names, *("" if value is None else str(value) for value in values))
    raise DataError(f"{label}, row {arrays + 1}, {fault}")


def _check_memory(table: pa.Table, label: str) -> None:
    """Raises DataError if a text is not UTF-8, or an index of a dictionary or an offset is out of range."""
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise DataError(f"{label}: damaged ({one_line(error)})") from None


def _in_order(arrays: Arrays, columns: Columns) -> Arrays:
    """The arrays with ids numbered by first occurrence, as `to_arrays` numbers them without a dictionary."""
    ids: dict[str, Any] = {}
    if pa.types.is_dictionary(columns.user.type):
        ids["users"], ids["user_tokens"] = by_first_appearance(arrays.users, arrays.user_tokens)
    if pa.types.is_dictionary(columns.item.type):
        ids["items"], ids["item_tokens"] = by_first_appearance(arrays.items, arrays.item_tokens)
    return arrays._replace(**ids)


def _ids(column: pa.ChunkedArray, label: str, name: str) -> pa.ChunkedArray:
    column = without_views(column)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{label}, column {quote(name)}: ids must be integers or strings, not {kind}")
    return column


def _times(table: pa.Table, label: str, name: str | None) -> pa.ChunkedArray:
    if name is None:
        return pa.chunked_array([np.zeros(table.num_rows, np.int64)])
    column = table[name]
    kind = column.type
    if pa.types.is_floating(kind):
        return column.cast(pa.float64())
    if pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date64(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:  # unsigned, above 2^63
            raise DataError(f"{label}, column {quote(name)}: {one_line(error)}") from None
    if pa.types.is_date32(kind):
        return column.cast(pa.int32()).cast(pa.int64())
    shown = kind.value_type if pa.types.is_dictionary(kind) else kind
    raise DataError(f"{label}, column {quote(name)}: times must be numbers, dates or timestamps, not {shown}")
