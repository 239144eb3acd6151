"""Ids and numbers that callers of the `Recommender` give, checked and converted."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from recgrela.data.formats.id_columns import id_text
from recgrela.system.arrow import to_table
from recgrela.system.errors import ConfigError, DataError
from recgrela.system.text import quote

Ids = Iterable[str | int]
HistoryLists = Mapping[str, Ids] | Iterable[Ids]


def to_id(value: Any, what: str) -> str:
    """An original id, text or a whole number, as text in data have it. Raises DataError for anything else."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(f"{what}: the id {quote(value)} is not valid text") from None
        return id_text(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise DataError(f"{what}: the id {quote(value)} is neither text nor a whole number")
    try:
        return str(operator.index(value))
    except ValueError:
        raise DataError(f"{what}: the id is {quote(value)}") from None


def to_ids(values: Any, what: str) -> list[str]:
    """A list, array or column of original ids as texts.

    Raises:
        ConfigError: it is a single id; DataError: an id is neither text nor a whole number.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ConfigError(f"{what}: expected a list of ids, got {quote(values)}")
    values = values.to_pylist() if isinstance(values, pa.Array | pa.ChunkedArray) else values
    return [to_id(value, what) for value in values]


def to_histories(histories: Any) -> tuple[list[str], list[list[str]]]:
    """Users, and the original ids of their histories. Users of a list are "0", "1", and so on.

    Raises:
        ConfigError, DataError: see `to_ids`; the message names the user.
    """
    if isinstance(histories, Mapping):
        users, rows = to_ids(histories, "histories"), list(histories.values())
    elif isinstance(histories, str | bytes) or not isinstance(histories, Iterable):
        raise ConfigError(f"histories: expected a list of histories, got {histories!r}")
    else:
        rows = list(histories)
        users = list(map(str, range(len(rows))))
    return users, [to_ids(row, f"the history of {user!r}") for user, row in zip(users, rows, strict=True)]


def to_count(value: Any, what: str) -> int:
    """A whole number of at least 1. Raises ConfigError for anything else."""
    try:
        count = operator.index(value)
    except TypeError:
        raise ConfigError(f"{what}: {quote(value)} is not a whole number") from None
    if count < 1 or isinstance(value, bool):
        raise ConfigError(f"{what}: {value} is below 1")
    return count


def to_events(events: Any) -> str | list[str] | pa.Table:
    """Events as a path, as paths, or as an Arrow table.

    Raises:
        DataError: they are neither paths nor a table.
    """
    if isinstance(events, str | Path):
        return str(events)
    if isinstance(events, list | tuple) and events and all(isinstance(one, str | Path) for one in events):
        return [str(path) for path in events]
    return to_table(events, "the events are neither a path nor a table")
