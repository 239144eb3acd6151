"""Delimited text, read by pyarrow. If that fails, a slower second pass finds the line at fault."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv

from recgrela.data.formats.columns import (
    Arrays,
    Columns,
    Names,
    NoEvents,
    find_columns,
    rating_fault,
    to_arrays,
    value_fault,
)
from recgrela.system.errors import DataError
from recgrela.system.text import one_line, quote

MAX_HEADER = 1 << 20  # bytes


@dataclass(frozen=True)
class Layout:
    """The layout of a text file.

    Attributes:
        delimiter: the column separator, one character or "::".
        columns: names of all columns, in file order.
        has_header: whether the first line is a header.
        quoted: whether values may be in double quotes and contain delimiters and line breaks.
    """

    delimiter: str
    columns: list[str]
    has_header: bool
    quoted: bool = False


def header_layout(data: pa.Buffer, label: str, delimiter: str, quoted: bool = False) -> Layout:
    """The layout of a file with a header. Raises DataError if the file is empty or not text."""
    start = bytes(memoryview(data)[:MAX_HEADER])
    if not start.strip():
        raise NoEvents(f"{label}: empty file")
    try:
        first = start.splitlines()[0]
        if len(first) == MAX_HEADER:
            raise DataError(f"{label}, line 1: longer than {MAX_HEADER:,} bytes; expected a header")
        line = first.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{label}, line 1: not UTF-8 text (wrong encoding, or not a text file)") from None
    if not line.strip():
        raise DataError(f"{label}, line 1: empty; expected a header")
    columns = next(_csv_reader([line], delimiter)) if quoted else line.split(delimiter)
    return Layout(delimiter, columns, has_header=True, quoted=quoted)


def read_events(
    data: pa.Buffer, label: str, layout: Layout, names: Names, rating: str | None = None
) -> Arrays:
    """Read three columns of a text file, and a column of ratings if there is a name for it.

    Args:
        data: the file, UTF-8.
        label: the file's name in messages.
        layout: the file's layout.
        names: the columns to read; others are ignored.
        rating: the column of ratings; None: they are not read.

    Raises:
        DataError: the file is empty, a column is missing, a line is truncated or has a wrong encoding, a time
            is not a finite number in range, or a rating is not a number; the message names line and column.
    """
    find_columns(f"{label}, line 1", layout.columns, (*names, *_given(rating)))
    complaint = "no events in the file"
    for time_type in (pa.int64(), pa.float64()):
        try:
            columns = _parse(data, layout, names, rating, time_type)
            if pa.types.is_integer(time_type) and re.search(rb"0[xX]", data):
                _parse(data, layout, names, rating, pa.float64())  # rejects hexadecimal times
        except pa.ArrowInvalid as error:  # the times may have fractions, which float64 reads
            complaint = one_line(error)
            continue
        if len(columns.user) == 0:
            break
        arrays = to_arrays(columns)
        if isinstance(arrays, Arrays):
            return arrays._replace(names=tuple(layout.columns))
        complaint = f"invalid value in event {arrays + 1}"
        break
    raise _fault(data, label, layout, names, rating, complaint)


def _given(rating: str | None) -> list[str]:
    return [] if rating is None else [rating]


def _parse(
    data: pa.Buffer, layout: Layout, names: Names, rating: str | None, time_type: pa.DataType
) -> Columns:
    # pyarrow splits at a single character. Splitting MovieLens' "::" at ":" gives an extra column between two
    # columns; its type null checks that it is empty.
    step = len(layout.delimiter)
    width = step * (len(layout.columns) - 1) + 1
    position = [str(step * layout.columns.index(name)) for name in (*names, *_given(rating))]
    gaps = {str(column): pa.null() for column in range(width) if column % step}
    ids = pa.dictionary(pa.int32(), pa.string())
    table = arrow_csv.read_csv(
        pa.BufferReader(data),
        arrow_csv.ReadOptions(
            column_names=[str(column) for column in range(width)],
            skip_rows=int(layout.has_header),
            block_size=1 << 23,
        ),
        arrow_csv.ParseOptions(
            delimiter=layout.delimiter[0],
            quote_char='"' if layout.quoted else False,
            newlines_in_values=layout.quoted,
        ),
        arrow_csv.ConvertOptions(
            column_types=dict(zip(position, (ids, ids, time_type, pa.float64()), strict=False)) | gaps,
            include_columns=[*position, *gaps],
            null_values=[""],
        ),
    )
    return Columns(*(table[column] for column in position))


def _fault(
    data: pa.Buffer, label: str, layout: Layout, names: Names, rating: str | None, complaint: str
) -> DataError:
    """An error for the first invalid line of the file, or with ``complaint`` if no line is invalid."""
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", errors="surrogateescape", newline="")
    position = [layout.columns.index(name) for name in names]
    events = 0
    for line, fields in split_lines(text, label, layout):
        where, expected = f"{label}, line {line}", layout.columns
        if len(fields) < len(expected):
            missing = f"column {quote(expected[len(fields)])} is missing"
            return DataError(
                f"{where}: {missing}, {len(fields)} of {len(expected)} columns (a truncated line?)"
            )
        if len(fields) > len(expected):
            return DataError(f"{where}: {len(fields)} columns, expected {len(expected)}")
        for name, value in zip(expected, fields, strict=True):
            if layout.delimiter == "::" and ":" in value:
                return DataError(
                    f"{where}, column {name!r}: {quote(value)} contains ':', the separator is '::'"
                )
        values = [fields[column] for column in position]
        for name, value in zip(names, values, strict=True):
            if any("\udc80" <= character <= "\udcff" for character in value):
                return DataError(f"{where}, column {quote(name)}: not UTF-8 text (wrong encoding)")
        fault = value_fault(names, *values)
        if fault is None and rating is not None:
            fault = rating_fault(rating, fields[expected.index(rating)])
        if fault:
            return DataError(f"{where}, {fault}")
        events += 1
    return DataError(f"{label}: {complaint}") if events else NoEvents(f"{label}: the file has no events")


def split_lines(text: io.TextIOBase, label: str, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """Line number from 1 and fields of each line after the header, without empty lines."""
    if layout.quoted:
        reader = _csv_reader(text, layout.delimiter)
        try:
            for fields in reader:
                if fields and reader.line_num > layout.has_header:
                    yield reader.line_num, fields
        except csv.Error as error:
            raise DataError(f"{label}, line {reader.line_num}: {error}") from None
    else:
        for number, line in enumerate(text, 1):
            if number > layout.has_header and line.strip("\r\n"):
                yield number, line.rstrip("\r\n").split(layout.delimiter)


def _csv_reader(lines: Iterable[str], delimiter: str) -> Any:
    csv.field_size_limit(2**31 - 1)  # a global setting; the default rejects long values
    return csv.reader(lines, delimiter=delimiter)


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
            titles[fields[columns[0]]] = " ".join(words)
    return titles


def _decode(data: bytes, label: str, or_latin1: bool) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if or_latin1:
            return data.decode("latin-1")
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{label}, line {line}: not UTF-8 text (wrong encoding)") from None
