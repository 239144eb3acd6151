"""Conversion of Arrow columns to the arrays of Events, with the checks that all formats share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recgrela.data.formats.id_columns import BadId, Ids, encode_ids
from recgrela.data.formats.times import NUMBER, comma_hint
from recgrela.settings.data import DataConfig
from recgrela.system.errors import DataError
from recgrela.system.suggest import near_miss
from recgrela.system.text import listed, quote


class NoEvents(DataError):
    """A file has no events; one of several files may have none."""


class Names(NamedTuple):
    """Names of the columns of a file; without a time, events are in the order of the file."""

    user: str
    item: str
    time: str | None


class Columns(NamedTuple):
    """The columns, of equal length; ratings are float64 if there are any."""

    user: pa.ChunkedArray
    item: pa.ChunkedArray
    time: pa.ChunkedArray
    rating: pa.ChunkedArray | None = None


class Arrays(NamedTuple):
    """The columns of a file as arrays.

    Attributes:
        users, items: [n] int32 indices into the tokens; a missing id has the token "".
        times: [n] int64 or float64.
        user_tokens, item_tokens: distinct original ids.
        ratings: [n] float64, NaN where there is none; None if they were not read.
        ticks: the number of units of the times in a second; None if the file has plain numbers.
        names: the names of all columns of the file, if it has any.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    user_tokens: list[str]
    item_tokens: list[str]
    ratings: np.ndarray | None = None
    ticks: int | None = None
    names: tuple[str, ...] = ()


def column_names(config: DataConfig) -> Names:
    """The columns that a configuration names."""
    time = None if config.order == "file" else config.time_column
    return Names(config.user_column, config.item_column, time)


def column_settings(names: Names, rating: str | None = None) -> dict[str, str]:
    """The settings that name the columns, by the names of these."""
    known = zip((*names, rating), ("user", "item", "time", "rating"), strict=True)
    return {name: f"data.{role}_column" for name, role in known if name is not None}


def no_times(events: int) -> pa.ChunkedArray:
    """The column of times of a file without times: zeros."""
    return pa.chunked_array([np.zeros(events, np.int64)])


def find_columns(
    where: str, present: list[str], wanted: tuple[str, ...], settings: Mapping[str, str] | None = None
) -> None:
    """Raises DataError for a wanted column that is missing or ambiguous, with a suggestion.

    Args:
        where: the file's name in messages.
        present: the names of its columns.
        wanted: those that it must have.
        settings: the settings that name them (`column_settings`).
    """
    for name in wanted:
        if name not in present:
            hint = near_miss(name, present)
            if (setting := (settings or {}).get(name)) is not None:
                is_near = bool(hint)
                hint += f" set {setting}" if is_near else f"; set {setting}"
                if setting == "data.time_column" and not is_near:
                    hint += ", or keep the order of the file with --data.order file"
            raise DataError(f"{where}: no column {quote(name)} among {listed(map(quote, present))}{hint}")
        if present.count(name) > 1:
            raise DataError(f"{where}: column {quote(name)} occurs {present.count(name)} times")


def rating_fault(name: str, value: str) -> str | None:
    """Describes a rating that is neither empty nor a number; None for others."""
    number = value.strip(" \t")
    if not number or NUMBER.fullmatch(number):
        return None
    return f"column {quote(name)}: {quote(value)} is not a number{comma_hint(number)}"


def to_arrays(columns: Columns, ticks: int | None = None) -> Arrays | int:
    """The columns as arrays, or the number of the first row without a finite time in range.

    Args:
        columns: the columns.
        ticks: see `Arrays`.

    Raises:
        BadId: a value is no id, which texts always are.
    """
    users, items = _encode(columns.user, "user"), _encode(columns.item, "item")
    times = pc.fill_null(columns.time, math.nan if pa.types.is_floating(columns.time.type) else 0).to_numpy()
    bad = None
    if times.dtype.kind == "f":
        bad = ~(np.abs(times) < 2.0**63)  # also NaN
    elif columns.time.null_count:
        bad = columns.time.is_null().to_numpy()
    if bad is not None and bad.any():
        return int(bad.argmax())
    ratings = None
    if columns.rating is not None:
        ratings = pc.fill_null(columns.rating.cast(pa.float64()), math.nan).to_numpy()
    return Arrays(users.codes, items.codes, times, users.tokens, items.tokens, ratings, ticks)


def _encode(column: pa.ChunkedArray, role: str) -> Ids:
    try:
        return encode_ids(column)
    except BadId as bad:
        bad.role = role
        raise
