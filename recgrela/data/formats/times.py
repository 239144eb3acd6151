"""Times as text: numbers, ISO 8601, or a format of strptime; converted by Arrow."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from recgrela.system.errors import ConfigError
from recgrela.system.text import quote, shorten

NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_ROUNDED = re.compile(r"[+-]?[0-9](?:[.,]([0-9]*))?[eE]\+?([0-9]+)")  # 1.6E+09
_ROUNDED_FROM = 6  # exponent from which a spreadsheet, not a program, leaves out the last digits


class TimeKind(NamedTuple):
    """How Arrow converts times as text: to numbers, or to microseconds since 1970 in UTC.

    Attributes:
        type: the type of the column.
        fault: what messages say of an invalid time.
        format: of strptime; None for ISO 8601 and numbers.
    """

    type: pa.DataType
    fault: str
    format: str | None = None

    @property
    def is_number(self) -> bool:
        return not pa.types.is_timestamp(self.type)

    @property
    def ticks(self) -> int | None:
        """The number of units in a second; None for plain numbers."""
        return None if self.is_number else 10**6


def time_kinds(first: str, time_format: str | None) -> list[TimeKind]:
    """The kinds to try, in this order, for a column whose first value is ``first``.

    Raises:
        ConfigError: Arrow does not read the format.
    """
    if time_format is not None:
        return [_of_format(time_format)]
    first = first.strip(" \t")
    if NUMBER.fullmatch(first):
        fault = "is not a finite number"
        types = [pa.float64()] if re.search("[.eE]", first) else [pa.int64(), pa.float64()]
        return [TimeKind(kind, fault) for kind in types]
    for zone in (None, "UTC"):
        fault = f"is not an ISO 8601 date or time with{'' if zone else 'out'} a time zone, as the first one"
        kinds = [TimeKind(pa.timestamp(unit, zone), fault) for unit in ("us", "ns")]  # ns: 7 digits and more
        if _converts([first], kinds):
            return kinds
    fix = "give their format with --data.time_format, or keep the order of the file with --data.order file"
    fault = f"is neither a finite number nor an ISO 8601 date or time; {fix}"
    return [TimeKind(pa.int64(), fault), TimeKind(pa.float64(), fault)]


def _of_format(time_format: str) -> TimeKind:
    zone = "UTC" if "%z" in time_format else None
    kind = TimeKind(pa.timestamp("us", zone), f"is not of data.time_format {time_format!r}", time_format)
    example = datetime(2012, 11, 23, 18, 50, 46, tzinfo=timezone.utc).strftime(time_format)
    if "%" not in time_format or not _converts([example], [kind]):
        fix = "give a format of strptime, such as '%Y-%m-%d %H:%M:%S'; there is none for fractions of seconds"
        raise ConfigError(f"data.time_format: {quote(time_format)} cannot be read; {fix}")
    return kind


def to_number(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times of any kind as int64, in microseconds if they are dates or times, or as float64."""
    if not pa.types.is_timestamp(times.type):
        return times
    numbers = times.cast(pa.int64())
    return pc.divide(numbers, 1000) if times.type.unit == "ns" else numbers


def convert(texts: pa.Array | pa.ChunkedArray, kind: TimeKind) -> pa.ChunkedArray:
    """Times as text -> int64 or float64 (`to_number`). Raises pa.ArrowInvalid."""
    if kind.format is not None:
        texts = pc.strptime(texts, kind.format, "us")
    return to_number(texts.cast(kind.type))


def first_invalid(texts: Sequence[str], kinds: Sequence[TimeKind]) -> int | None:
    """The place of the first text that is a time of none of these kinds, by Arrow; None if there is none."""
    if _converts(texts, kinds):
        return None
    low, high = 0, len(texts) - 1  # the first invalid text is in texts[low : high + 1]
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if _converts(texts[low : middle + 1], kinds) else (low, middle)
    return low


def _converts(texts: Sequence[str], kinds: Sequence[TimeKind]) -> bool:
    """Whether all texts are times of one of the kinds."""
    for kind in kinds:
        try:
            convert(pa.array(texts, pa.string()), kind)
        except (pa.ArrowInvalid, UnicodeEncodeError):
            continue
        return True
    return False


def comma_hint(text: str) -> str:
    """A hint for a number with a decimal comma; "" for other texts."""
    is_number = "," in text and NUMBER.fullmatch(text.replace(",", ".", 1))
    return "; write numbers with a decimal point, not a comma" if is_number else ""


def number_fault(name: str, text: str, fault: str = "is not a finite number") -> str | None:
    """Describes a time in the column ``name`` that is not a number in range, with ``fault``; else None."""
    number = text.strip(" \t")  # as Arrow does
    if not NUMBER.fullmatch(number) or not math.isfinite(float(number)):
        hint = comma_hint(number)
        fault = f"is not a finite number{hint}" if hint else fault
        return f"column {quote(name)}: {quote(text)} {fault}"
    if abs(float(number)) >= 2**63:
        limits = "times must be between -2^63 and 2^63"
        return f"column {quote(name)}: {shorten(text)} is out of range; {limits}"
    return None


def are_rounded(texts: Sequence[str]) -> bool:
    """Whether these times are written as a spreadsheet rounds large numbers, such as 1.6E+09."""
    found = [_ROUNDED.fullmatch(text.strip()) for text in texts]
    return len(texts) > 1 and all(
        match is not None and int(match[2][:9]) >= max(_ROUNDED_FROM, len(match[1] or "") + 1)
        for match in found
    )
