"""CSV files, and tables of Arrow and Parquet files, with named columns."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from recgrela.data.formats.arrow_file import read_arrow_columns
from recgrela.data.formats.columns import (
    Arrays,
    Columns,
    Names,
    NoEvents,
    find_columns,
    to_arrays,
    value_fault,
)
from recgrela.data.formats.id_columns import BadId
from recgrela.data.formats.parquet import read_columns
from recgrela.data.formats.source import Source
from recgrela.data.formats.text import header_layout, read_events
from recgrela.data.formats.time_columns import encode_times
from recgrela.data.prepare import by_first_appearance
from recgrela.settings.data import DataConfig
from recgrela.system.arrow import plain, values_type
from recgrela.system.errors import DataError
from recgrela.system.text import one_line, quote


def read_csv(data: pa.Buffer, source: Source, name: str, config: DataConfig) -> tuple[Arrays, dict[str, str]]:
    """Events of a comma-separated file with a header; values may be quoted."""
    label = source.label(name)
    layout = header_layout(data, label, ",", quoted=True)
    return read_events(data, label, layout, column_names(config), config.rating_to_read), {}


def read_parquet(
    data: pa.Buffer, source: Source, name: str, config: DataConfig
) -> tuple[Arrays, dict[str, str]]:
    """Events of a Parquet file; see `table_arrays` for the types of its columns."""
    label = source.label(name)
    table, names = read_columns(data, label, source.limit, wanted_columns(config))
    return table_arrays(table, label, config)._replace(names=names), {}


def read_arrow(
    data: pa.Buffer, source: Source, name: str, config: DataConfig
) -> tuple[Arrays, dict[str, str]]:
    """Events of an Arrow or Feather file; see `table_arrays` for the types of its columns."""
    label = source.label(name)
    table, names = read_arrow_columns(data, label, source.limit, wanted_columns(config))
    return table_arrays(table, label, config)._replace(names=names), {}


def column_names(config: DataConfig) -> Names:
    return Names(config.user_column, config.item_column, config.time_column)


def wanted_columns(config: DataConfig) -> tuple[str, ...]:
    """The columns to read."""
    rating = config.rating_to_read
    return (*column_names(config), *([] if rating is None else [rating]))


def table_arrays(table: pa.Table, label: str, config: DataConfig) -> Arrays:
    """Events of a table with the configured columns, of the types of `encode_ids` and `encode_times`.

    Raises:
        DataError: a column or a value is missing or invalid, or there are no events; the message begins with
            `label`.
    """
    names, wanted = column_names(config), wanted_columns(config)
    find_columns(label, table.column_names, wanted)
    if table.num_rows == 0:
        raise NoEvents(f"{label}: the file has no events")
    table = table.select(wanted)
    _check_memory(table, label)
    times = encode_times(table[names.time], label, names.time)
    rating = None if len(wanted) == len(names) else _ratings(table[wanted[-1]], label, wanted[-1])
    columns = Columns(plain(table[names.user]), plain(table[names.item]), times.numbers, rating)
    try:
        arrays = to_arrays(columns, times.ticks)
    except BadId as bad:
        raise DataError(f"{label}{bad.where(getattr(names, bad.role))}") from None
    if isinstance(arrays, Arrays):
        return _in_order(arrays, columns)._replace(names=tuple(table.column_names))
    value = table[names.time][arrays].as_py()
    fault = value_fault(names, "", "", "" if value is None else str(value))
    raise DataError(f"{label}, row {arrays + 1}, {fault}")


def _check_memory(table: pa.Table, label: str) -> None:
    """Raises DataError if a text is not UTF-8, or an index of a dictionary or an offset is out of range."""
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise DataError(f"{label}: damaged ({one_line(error)})") from None


def _ratings(column: pa.ChunkedArray, label: str, name: str) -> pa.ChunkedArray:
    column = plain(column)
    kind = values_type(column)
    if pa.types.is_nested(kind) or pa.types.is_temporal(kind):
        raise DataError(f"{label}, column {quote(name)}: ratings must be numbers, not {kind}")
    try:
        return column.cast(kind).cast(pa.float64())
    except pa.ArrowException as error:
        fault = f"ratings must be numbers: {one_line(error)}"
        raise DataError(f"{label}, column {quote(name)}: {fault}") from None


def _in_order(arrays: Arrays, columns: Columns) -> Arrays:
    """The arrays with ids numbered by first occurrence, as `to_arrays` numbers them without a dictionary."""
    ids: dict[str, Any] = {}
    if pa.types.is_dictionary(columns.user.type):
        ids["users"], ids["user_tokens"] = by_first_appearance(arrays.users, arrays.user_tokens)
    if pa.types.is_dictionary(columns.item.type):
        ids["items"], ids["item_tokens"] = by_first_appearance(arrays.items, arrays.item_tokens)
    return arrays._replace(**ids)
