"""Conversion of Arrow columns to the arrays of Events, with the checks that all formats share."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recgrela.data.formats.times import number_fault
from recgrela.settings.data import DataConfig
from recgrela.system.errors import DataError
from recgrela.system.suggest import near_miss
from recgrela.system.text import listed, quote, shorten

_MISSING = r"\s*|nan|NaN|NAN|null|NULL|NA"  # spellings of a missing value
_BAD_ID = rf"^({_MISSING}|-[0-9]+(\.[0-9]*)?)$"  # missing, or a number below 0


class Names(NamedTuple):
    """Names of the columns of a file; without a time, events are in the order of the file."""

    user: str
    item: str
    time: str | None


class Columns(NamedTuple):
    """The three columns, of equal length."""

    user: pa.ChunkedArray
    item: pa.ChunkedArray
    time: pa.ChunkedArray


class Arrays(NamedTuple):
    """The columns as arrays of Events."""

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    user_tokens: list[str]
    item_tokens: list[str]


def column_names(config: DataConfig) -> Names:
    """The columns that a configuration names."""
    time = None if config.order == "file" else config.time_column
    return Names(config.user_column, config.item_column, time)


def find_columns(where: str, present: list[str], wanted: tuple[str, ...]) -> None:
    """Raises DataError for a wanted column that is missing or ambiguous, with a suggestion."""
    for name in wanted:
        if name not in present:
            known = listed(map(quote, present))
            raise DataError(f"{where}: no column {quote(name)} among {known}{near_miss(name, present)}")
        if present.count(name) > 1:
            raise DataError(f"{where}: column {quote(name)} occurs {present.count(name)} times")


def find_events(where: str, present: list[str], names: Names) -> None:
    """`find_columns` for the columns of events."""
    find_columns(where, present, names[:2])
    if names.time is None:
        return
    if names.time not in present and not near_miss(names.time, present):
        fix = "name it by --data.time_column; without times, --data.order file keeps the order of the file"
        raise DataError(f"{where}: no column {quote(names.time)} among {listed(map(quote, present))}; {fix}")
    find_columns(where, present, (names.time,))


def value_fault(
    names: Names, user: str, item: str, time: str, not_number: str = "is not a finite number"
) -> str | None:
    """Describes the first invalid value of a row, with its column; None if the row is valid."""
    for name, value in ((names.user, user), (names.item, item)):
        if (fault := id_fault(name, value)) is not None:
            return fault
    return None if names.time is None else number_fault(names.time, time, not_number)


def id_fault(name: str, value: str) -> str | None:
    """Describes an invalid id in the column `name`; None if the id is valid."""
    if re.fullmatch(_MISSING, value, re.ASCII):
        return f"column {quote(name)}: {f'missing id {quote(value)}' if value else 'empty id'}"
    if re.match(_BAD_ID, value, re.ASCII):
        return f"column {quote(name)}: negative id {shorten(value)}"
    return None


def to_arrays(columns: Columns) -> Arrays | int:
    """The columns as arrays, or the number of the first row with an invalid value (see ``value_fault``)."""
    users, user_tokens, bad_user = _encode(columns.user)
    items, item_tokens, bad_item = _encode(columns.item)
    times = pc.fill_null(columns.time, math.nan if pa.types.is_floating(columns.time.type) else 0).to_numpy()
    bad_time = ~np.isfinite(times)
    if times.dtype.kind == "f":
        bad_time |= np.abs(times) >= 2.0**63
    if columns.time.null_count:
        bad_time |= columns.time.is_null().to_numpy()
    bad = bad_user | bad_item | bad_time
    if bad.any():
        return int(bad.argmax())
    return Arrays(users, items, times, user_tokens, item_tokens)


def _encode(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str], Any]:
    """A column of ids -> [n] int32 codes, tokens, and [n] bool or False, whether each row's id is invalid."""
    codes, dictionary = encode(column)
    tokens = dictionary.cast(pa.string())
    nulls = codes.is_null().to_numpy() if codes.null_count else False
    numbers = codes.fill_null(0).to_numpy()
    bad_tokens = pc.match_substring_regex(tokens, _BAD_ID).fill_null(True).to_numpy(zero_copy_only=False)
    bad = nulls | bad_tokens[numbers] if bad_tokens.any() else nulls
    return numbers, tokens.to_pylist(), bad


def encode(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.Array]:
    """A column as int32 codes of different values and these values; a dictionary array is never expanded."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    chunks = [
        pa.DictionaryArray.from_arrays(chunk.indices.cast(pa.int32()), chunk.dictionary)
        for chunk in column.chunks
    ]
    column = pa.chunked_array(chunks).unify_dictionaries()
    codes = pa.chunked_array([chunk.indices for chunk in column.chunks], pa.int32())
    values = column.chunk(0).dictionary
    different = values.dictionary_encode()
    if len(different.dictionary) < len(values):  # a dictionary may have a value twice, and null
        codes, values = different.indices.take(codes), different.dictionary
    return codes, values
