"""Delimited text, read by pyarrow. If that fails, a slower second pass finds the line at fault."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

import pyarrow as pa
from pyarrow import csv as arrow_csv

from recgrela.data.formats.columns import (
    Arrays,
    Columns,
    Names,
    NoEvents,
    column_settings,
    find_columns,
    no_times,
    rating_fault,
    to_arrays,
)
from recgrela.data.formats.id_columns import id_text
from recgrela.data.formats.layout import Layout, csv_reader, first_lines
from recgrela.data.formats.pieces import one_byte_separator
from recgrela.data.formats.times import (
    TimeKind,
    are_rounded,
    first_invalid,
    number_fault,
    time_kinds,
    to_number,
)
from recgrela.settings.delimited import SPACES
from recgrela.system.errors import DataError
from recgrela.system.text import one_line, quote

_FAULT_LINES = 1 << 16  # lines whose times are checked together


def read_events(
    data: pa.Buffer,
    label: str,
    layout: Layout,
    names: Names,
    rating: str | None = None,
    time_format: str | None = None,
) -> Arrays:
    """Read the columns of users, items and times of a text file, and of ratings if there is a name for it.

    Args:
        data: the file, UTF-8.
        label: the file's name in messages.
        layout: the file's layout.
        names: the columns to read; others are ignored. Without a column of times, all times are 0.
        rating: the column of ratings; None: they are not read.
        time_format: format of the times; None: numbers or ISO 8601.

    Raises:
        ConfigError: ``time_format`` cannot be read.
        DataError: the file is empty, a column is missing, a line is truncated or has a wrong encoding, or a
            time or a rating is invalid; the message names line and column.
    """
    wanted = tuple(name for name in (*names, rating) if name is not None)
    find_columns(f"{label}, line 1", layout.columns, wanted, column_settings(names, rating))
    times = _first_times(data, label, layout, names)
    kinds = time_kinds(times[0] if times else "0", time_format)
    if time_format is None and are_rounded(times):
        fix = "show the column as a number before exporting it, or set --data.order file"
        column = f"{label}, column {quote(names.time)}"
        raise DataError(
            f"{column}: {quote(times[0])} was rounded, as spreadsheets round large numbers; {fix}"
        )
    plain, separator = one_byte_separator(data, label, layout.separator)
    complaint = "no events in the file"
    for kind in kinds:
        try:
            columns = _parse(plain, separator, layout, names, rating, kind)
            if pa.types.is_integer(kind.type) and names.time is not None and re.search(rb"0[xX]", data):
                _parse(plain, separator, layout, names, rating, kinds[-1])  # rejects hexadecimal times
        except pa.ArrowInvalid as error:  # the times may have fractions, which the next kind reads
            complaint = one_line(error)
            continue
        if len(columns.user) == 0:
            break
        arrays = to_arrays(columns, kind.ticks)
        if isinstance(arrays, Arrays):
            if has_nul(arrays):
                break
            return arrays._replace(names=tuple(layout.columns))
        complaint = f"invalid value in event {arrays + 1}"
        break
    raise _fault(data, label, layout, names, rating, kinds, complaint)


def _first_times(data: pa.Buffer, label: str, layout: Layout, names: Names) -> list[str]:
    """The times in the first lines."""
    lines = first_lines(data, label)
    if names.time is None:
        return []
    place = layout.columns.index(names.time)
    rows = csv_reader(lines, layout.separator) if layout.quoted else map(layout.split, lines)
    return [row[place] for row in list(rows)[layout.has_header :] if place < len(row)]


def has_nul(arrays: Arrays) -> bool:
    """Whether an id has a NUL byte, as damaged files and UTF-16 have."""
    return any("\0" in token for tokens in (arrays.user_tokens, arrays.item_tokens) for token in tokens)


def _parse(
    data: pa.Buffer, separator: str, layout: Layout, names: Names, rating: str | None, kind: TimeKind
) -> Columns:
    ids = pa.dictionary(pa.int32(), pa.string())
    wanted = zip((*names, rating), (ids, ids, kind.type, pa.float64()), strict=True)
    types = {str(layout.columns.index(name)): kind for name, kind in wanted if name is not None}
    table = arrow_csv.read_csv(
        pa.BufferReader(data),
        arrow_csv.ReadOptions(
            column_names=[str(column) for column in range(len(layout.columns))],
            skip_rows=int(layout.has_header),
            block_size=1 << 23,
        ),
        arrow_csv.ParseOptions(
            delimiter=separator,
            quote_char='"' if layout.quoted else False,
            newlines_in_values=layout.quoted,
        ),
        arrow_csv.ConvertOptions(
            column_types=types,
            include_columns=[*types],
            null_values=[""],
            timestamp_parsers=[kind.format] if kind.format is not None else [],
        ),
    )
    user, item, *others = table.columns
    time = no_times(table.num_rows) if names.time is None else to_number(others.pop(0))
    return Columns(user, item, time, *others)


def _fault(
    data: pa.Buffer,
    label: str,
    layout: Layout,
    names: Names,
    rating: str | None,
    kinds: list[TimeKind],
    complaint: str,
) -> DataError:
    """An error for the first invalid line of the file, or with ``complaint`` if no line is invalid."""
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", errors="surrogateescape", newline="")
    place = None if names.time is None else layout.columns.index(names.time)
    lines, times = [0], [""]  # whose times are not checked yet
    events = 0
    for line, fields in split_lines(text, label, layout):
        fault = _line_fault(layout, fields, names, rating, kinds)
        if fault is not None or len(lines) > _FAULT_LINES:
            if (late := _time_fault(names, kinds, lines[1:], times[1:])) is not None:
                return DataError(f"{label}, {late}")
            lines, times = [0], [""]
        if fault is not None:
            return DataError(f"{label}, line {line}{fault}")
        if place is not None:
            lines.append(line)
            times.append(fields[place])
        events += 1
    if (late := _time_fault(names, kinds, lines[1:], times[1:])) is not None:
        return DataError(f"{label}, {late}")
    return DataError(f"{label}: {complaint}") if events else NoEvents(f"{label}: the file has no events")


def _line_fault(
    layout: Layout, fields: list[str], names: Names, rating: str | None, kinds: list[TimeKind]
) -> str | None:
    """The fault of a line, but for times that are not numbers."""
    expected = layout.columns
    if len(fields) < len(expected):
        missing = f"column {quote(expected[len(fields)])} is missing"
        return f": {missing}, {len(fields)} of {len(expected)} columns (a truncated line?)"
    if len(fields) > len(expected):
        hint = "" if fields[-1] else " (a separator at the end of the line?)"
        return f": {len(fields)} columns, expected {len(expected)}{hint}"
    values = {name: fields[expected.index(name)] for name in names if name is not None}
    for name, value in values.items():
        if any("\udc80" <= letter <= "\udcff" for letter in value):
            return f", column {quote(name)}: not UTF-8 text (wrong encoding)"
        if "\0" in value:
            return f", column {quote(name)}: {quote(value)} has a NUL byte; the file is damaged, or not UTF-8"
    fault = None
    if names.time is not None and kinds[0].is_number:
        fault = number_fault(names.time, values[names.time], kinds[0].fault)
    if fault is None and rating is not None:
        fault = rating_fault(rating, fields[expected.index(rating)])
    return None if fault is None else f", {fault}"


def _time_fault(names: Names, kinds: list[TimeKind], lines: list[int], times: list[str]) -> str | None:
    """The line of the first time that is of no kind, and what is wrong."""
    if kinds[0].is_number or not times or (place := first_invalid(times, kinds)) is None:
        return None
    return f"line {lines[place]}, column {quote(names.time)}: {quote(times[place])} {kinds[0].fault}"


def split_lines(text: io.TextIOBase, label: str, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """Line number from 1 and fields of each line after the header, without empty lines."""
    if layout.quoted:
        reader = csv_reader(text, layout.separator)
        try:
            for fields in reader:
                if fields and reader.line_num > layout.has_header:
                    yield reader.line_num, fields
        except csv.Error as error:
            raise DataError(f"{label}, line {reader.line_num}: {error}") from None
    else:
        for number, line in enumerate(text, 1):
            content = line.strip(" \t\r\n") if layout.separator == SPACES else line.rstrip("\r\n")
            if number > layout.has_header and content:
                yield number, layout.split(content)


def read_titles(
    data: pa.Buffer, label: str, layout: Layout, item: str, title: str, or_latin1: bool = False
) -> dict[str, str]:
    """Titles by item id from a text file, with whitespace collapsed; items without a title are omitted.

    Args:
        data: the file.
        label: the file's name in messages.
        layout: the file's layout.
        item: name of the id column.
        title: name of the title column.
        or_latin1: whether a file that is not valid UTF-8 is read as Latin-1.

    Raises:
        DataError: a column is missing, a line is truncated, or the encoding is wrong.
    """
    find_columns(f"{label}, line 1", layout.columns, (item, title))
    columns = layout.columns.index(item), layout.columns.index(title)
    text = _decode(data.to_pybytes(), label, or_latin1)
    titles = {}
    for line, fields in split_lines(io.StringIO(text, newline=""), label, layout):
        if len(fields) <= max(columns):
            missing = quote(layout.columns[len(fields)])
            raise DataError(f"{label}, line {line}: column {missing} is missing (a truncated line?)")
        words = fields[columns[1]].split()
        if words:
            titles[id_text(fields[columns[0]])] = " ".join(words)
    return titles


def _decode(data: bytes, label: str, or_latin1: bool) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if or_latin1:
            return data.decode("latin-1")
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{label}, line {line}: not UTF-8 text (wrong encoding)") from None
