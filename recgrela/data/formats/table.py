"""Delimited text, and tables of Arrow and Parquet files, with named columns."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from recgrela.data.formats.arrow_file import read_arrow_columns
from recgrela.data.formats.columns import (
    Arrays,
    Columns,
    NoEvents,
    column_names,
    column_settings,
    find_columns,
    no_times,
    to_arrays,
)
from recgrela.data.formats.id_columns import BadId
from recgrela.data.formats.layout import find_layout
from recgrela.data.formats.parquet import read_columns
from recgrela.data.formats.source import Source
from recgrela.data.formats.text import read_events
from recgrela.data.formats.time_columns import Times, encode_times
from recgrela.data.formats.times import number_fault
from recgrela.data.prepare import by_first_appearance
from recgrela.settings.data import DataConfig
from recgrela.system.arrow import plain, values_type
from recgrela.system.errors import ConfigError, DataError
from recgrela.system.text import one_line, quote


def read_csv(data: pa.Buffer, source: Source, name: str, config: DataConfig) -> tuple[Arrays, dict[str, str]]:
    """Events of delimited text."""
    label, names = source.label(name), column_names(config)
    layout = find_layout(data, label, config, names[:2])
    return read_events(data, label, layout, names, config.rating_to_read, config.time_format), {}


def read_parquet(
    data: pa.Buffer, source: Source, name: str, config: DataConfig
) -> tuple[Arrays, dict[str, str]]:
    """Events of a Parquet file; see `table_arrays` for the types of its columns."""
    label = source.label(name)
    settings = column_settings(column_names(config), config.rating_to_read)
    table, names = read_columns(data, label, source.limit, wanted_columns(config), settings=settings)
    return table_arrays(table, label, config)._replace(names=names), {}


def read_arrow(
    data: pa.Buffer, source: Source, name: str, config: DataConfig
) -> tuple[Arrays, dict[str, str]]:
    """Events of an Arrow or Feather file; see `table_arrays` for the types of its columns."""
    label = source.label(name)
    settings = column_settings(column_names(config), config.rating_to_read)
    table, names = read_arrow_columns(data, label, source.limit, wanted_columns(config), settings)
    return table_arrays(table, label, config)._replace(names=names), {}


def wanted_columns(config: DataConfig) -> tuple[str, ...]:
    """The columns to read."""
    return tuple(name for name in (*column_names(config), config.rating_to_read) if name is not None)


def table_arrays(table: pa.Table, label: str, config: DataConfig) -> Arrays:
    """Events of a table with the configured columns, of the types of `encode_ids` and `encode_times`.

    Raises:
        ConfigError: a setting is for delimited text or for times as text.
        DataError: a column or a value is missing or invalid, or there are no events; the message begins with
            `label`.
    """
    for key in ("separator", "columns"):
        if getattr(config, key) != getattr(DataConfig, key):
            raise ConfigError(f"data.{key}: does not apply to {label}, which is not delimited text")
    names, rated = column_names(config), config.rating_to_read
    find_columns(label, table.column_names, wanted_columns(config), column_settings(names, rated))
    if table.num_rows == 0:
        raise NoEvents(f"{label}: the file has no events")
    table = table.select(wanted_columns(config))
    _check_memory(table, label)
    times = Times(no_times(table.num_rows), None)
    if names.time is not None:
        times = encode_times(table[names.time], label, names.time, config.time_format)
    rating = None if rated is None else _ratings(table[rated], label, rated)
    columns = Columns(plain(table[names.user]), plain(table[names.item]), times.numbers, rating)
    try:
        arrays = to_arrays(columns, times.ticks)
    except BadId as bad:
        raise DataError(f"{label}{bad.where(getattr(names, bad.role))}") from None
    if isinstance(arrays, Arrays):
        return _in_order(arrays, columns)._replace(names=tuple(table.column_names))
    value = times.numbers[arrays].as_py()
    fault = number_fault(str(names.time), "" if value is None else str(value))
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
