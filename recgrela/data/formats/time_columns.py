"""Columns of times: any Arrow type -> numbers, and how many of them are a second."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from recgrela.data.formats.times import convert, first_invalid, time_kinds
from recgrela.system.arrow import plain
from recgrela.system.errors import ConfigError, DataError
from recgrela.system.text import one_line, quote

TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # units of a second
_DAY = 86_400  # seconds
_TEXTS = 1 << 16  # that are checked at a time


class Times(NamedTuple):
    """A column of times.

    Attributes:
        numbers: int64 or float64; null where there is no time.
        ticks: the number of units in a second, since 1970; None for plain numbers, whose unit is unknown.
    """

    numbers: pa.ChunkedArray
    ticks: int | None


def encode_times(column: pa.ChunkedArray, label: str, name: str, time_format: str | None = None) -> Times:
    """The numbers of a column of times.

    Numbers and decimals are as they are. Timestamps, which are in UTC whatever their zone is, and durations
    are in their own unit; dates are in seconds. Texts are numbers, or dates and times in ISO 8601 or
    ``time_format``, in microseconds.

    Raises:
        ConfigError: ``time_format`` cannot be read, or times are not texts.
        DataError: the column has another type, an integer above 2^63, or a text that is no time; the message
            begins with `label`.
    """
    column = plain(column)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind, types = column.type, pa.types
    is_text = types.is_string(kind) or types.is_large_string(kind)
    if time_format is not None and not is_text:
        raise ConfigError(f"data.time_format: does not apply to {label}, whose times are {kind}, not text")
    try:
        if types.is_null(kind) or types.is_integer(kind):
            return Times(column.cast(pa.int64()), None)
        if types.is_floating(kind):
            return Times(column.cast(pa.float64()), None)
        if types.is_decimal(kind):
            is_whole = pc.all(pc.equal(pc.floor(column), column)).as_py() is not False
            return Times(column.cast(pa.int64() if is_whole else pa.float64()), None)
        if types.is_timestamp(kind) or types.is_duration(kind):
            return Times(column.cast(pa.int64()), TICKS[kind.unit])
        if types.is_date32(kind):
            days = column.cast(pa.int32()).cast(pa.int64())
            return Times(pc.multiply(days, _DAY), 1)
        if types.is_date64(kind):
            return Times(pc.divide(column.cast(pa.int64()), 1000), 1)
        if is_text:
            return _of_texts(column, label, name, time_format)
    except pa.ArrowInvalid as error:  # above 2^63
        raise DataError(f"{label}, column {quote(name)}: {one_line(error)}") from None
    fix = "; add the date" if types.is_time(kind) else ""
    raise DataError(
        f"{label}, column {quote(name)}: times must be numbers, dates or timestamps, not {kind}{fix}"
    )


def _of_texts(column: pa.ChunkedArray, label: str, name: str, time_format: str | None) -> Times:
    present = column.drop_null()
    kinds = time_kinds(present[0].as_py() if len(present) else "0", time_format)
    for kind in kinds:
        try:
            return Times(convert(column, kind), kind.ticks)
        except pa.ArrowInvalid:
            continue
    for begin in range(0, len(column), _TEXTS):
        texts = ["" if text is None else text for text in column.slice(begin, _TEXTS).to_pylist()]
        if (place := first_invalid(texts, kinds)) is not None:
            where = f"{label}, row {begin + place + 1}, column {quote(name)}"
            raise DataError(f"{where}: {quote(texts[place])} {kinds[0].fault}")
    raise DataError(f"{label}, column {quote(name)}: times are written in several ways; write all in one")
