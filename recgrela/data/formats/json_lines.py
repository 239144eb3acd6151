"""JSON lines: an object for each event. If Arrow fails, a slower second pass finds the line at fault."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json as arrow_json

from recgrela.data.formats.columns import Arrays, column_names, column_settings, find_columns
from recgrela.data.formats.layout import first_lines
from recgrela.data.formats.pieces import pieces
from recgrela.data.formats.source import Source
from recgrela.data.formats.table import table_arrays, wanted_columns
from recgrela.settings.data import DataConfig
from recgrela.system.errors import DataError
from recgrela.system.text import one_line, quote

_PIECE = 1 << 25  # bytes
_BLOCK = 1 << 23  # bytes that a thread reads, which a line must not exceed
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}


def read(data: pa.Buffer, source: Source, name: str, config: DataConfig) -> tuple[Arrays, dict[str, str]]:
    """Events of a file of JSON lines; see `table_arrays` for the values.

    A name such as ``user.id`` is the key ``id`` of the object ``user``, unless there is a key of that name.
    """
    label = source.label(name)
    lines = first_lines(data, label)
    for number in (pa.int64(), pa.float64()):  # of times and ratings, which may have fractions
        reader = _Reader(lines, label, config, number)
        try:
            table = pa.concat_tables(reader.read(pa.py_buffer(piece)) for piece in pieces(data, _PIECE))
        except pa.ArrowInvalid as error:
            complaint = one_line(error)
            continue
        try:
            return table_arrays(table, label, config), {}
        except DataError:
            reader.raise_fault(data)
            raise
    reader.raise_fault(data)
    raise DataError(f"{label}: {complaint}")


class _Reader:
    """Reads the columns of events from pieces of a file, with the types of the first values.

    Args:
        lines: the first events; the first of them that has a value in a column decides on its type.
        label: the file's name in messages.
        config: names the columns.
        number: the type of times and ratings that are numbers.

    Raises:
        DataError: the first line is not an object with these columns.
    """

    def __init__(self, lines: list[str], label: str, config: DataConfig, number: pa.DataType) -> None:
        self._label, names, wanted = label, column_names(config), wanted_columns(config)
        keys: dict[str, None] = {}
        outer: dict[str, Any] = {}
        first: dict[str, tuple[int, Any]] = {}  # line and value
        for line, event in self._first_events(lines):
            keys |= dict.fromkeys(_keys(event))
            outer |= event
            values = {name: _value(event, _path(name, event)) for name in wanted if name not in first}
            first |= {name: (line, value) for name, value in values.items() if value is not None}
            if len(first) == len(wanted):
                break
        settings = column_settings(names, config.rating_to_read)
        find_columns(f"{label}, line 1", [*keys], wanted, settings)
        self._paths = {name: _path(name, outer) for name in wanted}
        self._types = dict.fromkeys(wanted, _TYPES[str])
        for name in wanted:
            line, value = first.get(name, (1, None))
            self._check_value(line, name, value, value)
            self._types[name] = _TYPES.get(type(value), pa.string())
            if name not in names[:2] and not isinstance(value, str):
                self._types[name] = number

    def _first_events(self, lines: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The events of the first lines with their numbers, up to one that cannot be read."""
        yield 1, self._object(1, lines[0])
        for number, line in enumerate(lines[1:], 2):
            try:
                yield number, self._object(number, line)
            except DataError:  # reported when the file is read
                return

    def read(self, piece: pa.Buffer) -> pa.Table:
        """A table of the columns, ids as dictionaries. Raises pa.ArrowInvalid."""
        fields: dict[str, Any] = {}
        for name, path in self._paths.items():
            inner = fields
            for key in path[:-1]:
                inner = inner.setdefault(key, {})
            inner[path[-1]] = self._types[name]
        table = arrow_json.read_json(
            pa.BufferReader(piece),
            arrow_json.ReadOptions(block_size=_BLOCK),
            arrow_json.ParseOptions(
                explicit_schema=pa.schema(_fields(fields)), unexpected_field_behavior="ignore"
            ),
        )
        columns = {}
        for place, (name, path) in enumerate(self._paths.items()):
            column = table[path[0]]
            for key in path[1:]:
                column = pc.struct_field(column, key)
            columns[name] = column.dictionary_encode() if place < 2 else column
        return pa.table(columns)

    def raise_fault(self, data: pa.Buffer) -> None:
        """Raises DataError for the first invalid line, if a line is."""
        number, first = 0, dict[str, Any]()
        for piece in pieces(data, _PIECE):
            for line in piece.decode("utf-8", errors="surrogateescape").split("\n"):
                number += 1
                if line.strip():
                    event = self._object(number, line)
                    for name, path in self._paths.items():
                        if (value := _value(event, path)) is not None:
                            self._check_value(number, name, value, first.setdefault(name, value))
            number -= 1  # a piece ends with a line break, after which there is no line

    def _check_value(self, number: int, name: str, value: object, first: object) -> None:
        """Raises DataError if a value cannot be in a column with the type of the first value."""
        if value is None:
            return
        where = f"{self._label}, line {number}, column {quote(name)}: {quote(value)}"
        if isinstance(value, bool | list | dict):
            raise DataError(f"{where} is not text or a number")
        if isinstance(value, str) and any("\udc80" <= letter <= "\udcff" for letter in value):
            raise DataError(f"{where} is not UTF-8 text (wrong encoding)")
        if isinstance(value, str) != isinstance(first, str):
            words = ("text", "a number") if isinstance(value, str) else ("a number", "text")
            raise DataError(f"{where} is {words[0]}, but the first one is {words[1]}; write all alike")
        is_whole = isinstance(value, int) and -(2**63) <= value < 2**63
        if pa.types.is_integer(self._types[name]) and not is_whole:
            raise DataError(f"{where} is not a whole number below 2^63; write such values as text")

    def _object(self, number: int, line: str) -> dict[str, Any]:
        where, start = f"{self._label}, line {number}", line.lstrip("\ufeff \t")
        fix = ""
        try:
            value = json.loads(start)
        except (ValueError, RecursionError) as error:
            value, fix = None, f"not JSON: {one_line(error)}"
        if isinstance(value, dict):
            return value
        if start.startswith("["):
            fix = "a list; write an object a line, as jq -c '.[]' does"
        elif start.startswith(("{'", "{u'")):
            fix = "a Python literal, not JSON; docs/data.md has a command that converts such files"
        elif start.rstrip().endswith("},"):
            fix = "a comma follows the object; remove it, an object a line is enough"
        elif start.strip() == "{":
            fix = "an object over several lines; write an object a line, as jq -c . does"
        raise DataError(f"{where}: {fix or f'expected an object for an event, not {quote(value)}'}")


def _keys(value: dict[str, Any], prefix: str = "") -> list[str]:
    """The keys of an object and, dotted, of the objects in it."""
    keys = []
    for key, inner in value.items():
        keys.append(f"{prefix}{key}")
        if isinstance(inner, dict):
            keys += _keys(inner, f"{prefix}{key}.")
    return keys


def _path(name: str, keys: Container[str]) -> list[str]:
    """The keys that lead to a column."""
    return [name] if name in keys else name.split(".")


def _value(value: Any, path: list[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _fields(tree: dict[str, Any]) -> list[pa.Field]:
    return [
        pa.field(key, pa.struct(_fields(kind)) if isinstance(kind, dict) else kind)
        for key, kind in tree.items()
    ]
