"""The layout of a text file, found from its first lines."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from recgrela.data.formats.columns import NoEvents
from recgrela.settings.data import DataConfig
from recgrela.settings.delimited import SPACES, column_list, separator_of, separator_word
from recgrela.system.errors import DataError
from recgrela.system.text import listed, quote

MAX_HEADER = 1 << 20  # bytes
_SAMPLE = 20  # lines
_CANDIDATES = ("\t", "::", ";", "|", "\x01", ",", SPACES)  # in this order; \x01 is Hive's
_QUOTED = (",", ";", "|")  # separators of files whose values may be quoted
_DATA = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?|[0-9]{4}-[0-9]{2}-[0-9]{2}([ T].*)?")
_TIME = re.compile(r"[0-9]{9,}|[0-9]{4}-[0-9]{2}-[0-9]{2}")  # since 1973 in seconds, or an ISO 8601 date
_MANY = 8  # columns; lines with more may be sequences
_OTHER_FILES = {  # first bytes, in lower case
    b"par1": "a Parquet file; set data.format=parquet",
    b"<!doctype": "a web page, not data; download the file itself",
    b"<html": "a web page, not data; download the file itself",
    b"version https://git-lfs": "a pointer of Git LFS, not data; run git lfs pull",
}


@dataclass(frozen=True)
class Layout:
    """The layout of a text file.

    Attributes:
        separator: of columns; " " for one or more spaces or tabs.
        columns: names of all columns, in file order.
        has_header: whether the first line is a header.
        quoted: whether values may be in double quotes and contain separators and line breaks.
    """

    separator: str
    columns: list[str]
    has_header: bool
    quoted: bool = False

    def split(self, line: str) -> list[str]:
        """The fields of a line."""
        return split(line, self.separator, self.quoted)


def split(line: str, separator: str, quoted: bool) -> list[str]:
    """The fields of a line."""
    if separator == SPACES:
        return re.split("[ \t]+", line.strip(" \t\r\n"))
    return next(csv_reader([line], separator), [""]) if quoted else line.split(separator)


def csv_reader(lines: Iterable[str], separator: str) -> Any:
    csv.field_size_limit(2**31 - 1)  # a global setting; the default rejects long values
    return csv.reader(lines, delimiter=separator)


def first_lines(data: pa.Buffer, label: str) -> list[str]:
    """The first lines of a file that are not empty, without NUL bytes, which csv of Python 3.10 refuses.

    Raises:
        DataError: the file is empty or not text.
    """
    start = bytes(memoryview(data)[:MAX_HEADER])
    text = start.removeprefix(codecs.BOM_UTF8)
    if not text.strip():
        raise NoEvents(f"{label}: empty file")
    _check_text(start, label)
    lines = [line for line in text.splitlines() if line.strip()]
    if len(start) == MAX_HEADER and len(lines) > 1:
        del lines[-1]  # it is cut off
    return [line.replace(b"\0", b"").decode(errors="surrogateescape") for line in lines[: 10 * _SAMPLE]]


def _check_text(start: bytes, label: str) -> None:
    """Raises DataError for a file that is not text, as its first bytes show."""
    for magic, what in _OTHER_FILES.items():
        if start[: len(magic)].lower() == magic:
            raise DataError(f"{label}: {what}")
    pairs = start[: min(len(start), 1000) // 2 * 2]
    zeros = pairs[::2].count(0), pairs[1::2].count(0)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or (max(zeros) > len(pairs) / 5 > 5 * min(zeros)):
        fix = "convert it to UTF-8, such as with iconv -f UTF-16 -t UTF-8"
        raise DataError(f"{label}: UTF-16 text; {fix}")
    if sum(zeros) > len(pairs) // 2:
        raise DataError(f"{label}: begins with NUL bytes; the file is damaged, or not text")


def header_layout(data: pa.Buffer, label: str, separator: str, quoted: bool = False) -> Layout:
    """The layout of a file with a header. Raises DataError if the file is empty or not text."""
    return Layout(separator, _names(_header(data, label), separator, quoted), has_header=True, quoted=quoted)


def find_layout(
    data: pa.Buffer, label: str, config: DataConfig, wanted: tuple[str, ...], has_types: bool = False
) -> Layout:
    """The layout of a file by its first lines, ``data.separator`` and ``data.columns``.

    Args:
        data: the file.
        label: the file's name in messages.
        config: settings.
        wanted: names in the header that show that the separator is right.
        has_types: whether names in the header are followed by types, as in ``user_id:token``.

    Raises:
        DataError: the file is empty or not text; no separator gives the columns; the first line is not a
            header but should be, or is one but should not.
    """
    given = separator_of(config.separator)
    if config.columns is not None:
        return _without_header(first_lines(data, label), label, given, config)
    header, lines = _header(data, label), first_lines(data, label)
    tried = list[Layout]()
    for separator in _CANDIDATES if given is None else (given,):
        quoted = separator in _QUOTED or _has_quoted_names(header, separator)
        names = _names(header, separator, quoted)
        if has_types:
            names = [name.split(":")[0].rstrip() for name in names]
        tried.append(Layout(separator, names, has_header=True, quoted=quoted))
    if right := [layout for layout in tried if {*wanted} <= {*layout.columns}]:
        return next((layout for layout in right if _is_regular(layout, lines)), right[0])
    best = _most_regular(tried, lines)
    _refuse_data(best, lines, label)
    if given is not None and len(best.columns) == 1:
        _refuse_separator(header, label, given)
    return best


def _header(data: pa.Buffer, label: str) -> str:
    lines = first_lines(data, label)
    first = bytes(memoryview(data)[:MAX_HEADER]).removeprefix(codecs.BOM_UTF8).splitlines()[0]
    if len(first) == MAX_HEADER:
        raise DataError(f"{label}, line 1: longer than {MAX_HEADER:,} bytes; expected a header")
    if not first.strip():
        raise DataError(f"{label}, line 1: empty; expected a header")
    if any("\udc80" <= letter <= "\udcff" for letter in lines[0]):
        raise DataError(f"{label}, line 1: not UTF-8 text (wrong encoding, or not a text file)")
    return lines[0]


def _names(header: str, separator: str, quoted: bool) -> list[str]:
    return [name.strip() for name in split(header, separator, quoted)]


def _has_quoted_names(header: str, separator: str) -> bool:
    """Whether every name is in quotation marks: values of tabbed text may be, as programs such as R write."""
    if len(separator) > 1:
        return False
    return all(re.fullmatch(r'\s*"[^"]*"\s*', name) for name in header.split(separator))


def _is_regular(layout: Layout, lines: list[str]) -> bool:
    """Whether the layout divides each of the first lines into its columns, at least two."""
    return {len(layout.split(line)) for line in lines[:_SAMPLE]} == {len(layout.columns)} != {1}


def _most_regular(layouts: list[Layout], lines: list[str]) -> Layout:
    regular = [layout for layout in layouts if _is_regular(layout, lines)]
    return regular[0] if regular else max(layouts, key=lambda layout: len(layout.columns))


def _refuse_data(layout: Layout, lines: list[str], label: str) -> None:
    """Raises DataError if the first line has values, not names."""
    fields = layout.columns
    if re.fullmatch(r"sep=.", lines[0].strip()):
        raise DataError(f"{label}, line 1: {quote(lines[0])} is for Excel only; remove the line")
    if re.fullmatch(r"[0-9]+:", lines[0]):
        what = "a line for each item, followed by lines of its users, as in the Netflix Prize"
        raise DataError(f"{label}, line 1: {what}; docs/data.md has a command that converts it")
    if not any(_DATA.fullmatch(field) for field in fields):
        return
    if min(len(layout.split(line)) for line in lines) > 1 and len({len(layout.split(x)) for x in lines}) > 1:
        counts = listed(len(layout.split(line)) for line in lines[:3])
        fix = "for a user and their items a line, set data.format=sequences; else data.separator"
        raise DataError(f"{label}: the first lines have {counts} values; {fix}")
    fix = f"name the columns, such as --data.columns {','.join(_example_names(fields))}"
    if len(fields) < 3:
        fix += ", with --data.order file"
    if len(fields) > _MANY:
        fix += "; for a user and their items a line, set data.format=sequences"
    raise DataError(f"{label}, line 1: not a header: {listed(map(quote, fields))}; {fix}")


def _example_names(fields: list[str]) -> list[str]:
    """Names for columns with these values: the last one that may be a time is it, or else the third."""
    names = ["user_id", "item_id", *"_" * (len(fields) - 2)]
    if len(fields) > 2:
        times = [place for place, field in enumerate(fields) if place > 1 and _TIME.match(field)]
        names[times[-1] if times else 2] = "timestamp"
    return names


def _refuse_separator(line: str, label: str, given: str) -> None:
    """Raises DataError for a line in which the given separator does not occur."""
    others = [(len(split(line, other, other in _QUOTED)), other) for other in _CANDIDATES if other in line]
    hint = f"; set data.separator={separator_word(max(others)[1])}" if others else ""
    raise DataError(f"{label}, line 1: no separator {separator_word(given)} in {quote(line)}{hint}")


def _without_header(lines: list[str], label: str, given: str | None, config: DataConfig) -> Layout:
    names = column_list(config.columns or "")

    def layout(separator: str) -> Layout:
        return Layout(separator, names, has_header=False, quoted=separator in _QUOTED)

    found = [layout(separator) for separator in (_CANDIDATES if given is None else (given,))]
    right = [one for one in found if all(len(one.split(line)) == len(names) for line in lines[:_SAMPLE])]
    if not right:  # the first line decides; a later one is at fault
        right = [one for one in found if len(one.split(lines[0])) == len(names)]
    if not right:
        if given is not None and len(found[0].split(lines[0])) == 1:
            _refuse_separator(lines[0], label, given)
        best = max(found, key=lambda one: len(one.split(lines[0])))
        counts = f"{len(best.split(lines[0]))} values separated by {separator_word(best.separator)}"
        fix = f"data.columns has {len(names)} names; name all columns ('_': ignored), or set data.separator"
        raise DataError(f"{label}, line 1: {quote(lines[0])} has {counts}; {fix}")
    _refuse_header(lines, right[0], label, (config.user_column, config.item_column))
    return right[0]


def _refuse_header(lines: list[str], layout: Layout, label: str, ids: tuple[str, str]) -> None:
    """Raises DataError if the first line has names of columns: that of an id, or texts above numbers."""
    first, *rows = (layout.split(line) for line in lines[:_SAMPLE])
    places = [layout.columns.index(name) for name in ids]
    is_name = any(_plain(first[place]) == _plain(layout.columns[place]) for place in places)
    rows = [row for row in rows if len(row) == len(first)]

    def are_numbers(row: list[str]) -> list[bool]:
        return [_DATA.fullmatch(row[place].strip()) is not None for place in places]

    if is_name or (
        len(rows) > 1 and not any(are_numbers(first)) and all(all(are_numbers(row)) for row in rows)
    ):
        shown = listed(map(quote, first))
        raise DataError(f"{label}, line 1: is a header, {shown}; remove it, or the setting data.columns")


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())
