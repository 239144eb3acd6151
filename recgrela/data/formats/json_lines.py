"""JSON lines: an object for each event. If Arrow fails, a slower second pass finds the line at fault."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json as arrow_json

from recgrela.data.formats.columns import Arrays, Names, column_names, find_events, value_fault
from recgrela.data.formats.layout import first_lines
from recgrela.data.formats.pieces import pieces
from recgrela.data.formats.source import Source
from recgrela.data.formats.table import table_arrays
from recgrela.data.formats.times import TimeKind, convert, first_invalid, time_kinds
from recgrela.settings.data import DataConfig
from recgrela.system.errors import DataError
from recgrela.system.text import one_line, quote

_PIECE = 1 << 25  # bytes
_BLOCK = 1 << 23  # bytes that a thread reads, which a line must not exceed


def read(data: pa.Buffer, source: Source, name: str, config: DataConfig) -> tuple[Arrays, dict[str, str]]:
    """Events of a file of JSON lines.

    A name such as ``user.id`` is the key ``id`` of the object ``user``, unless there is a key of that name.
    Times are numbers or, as text, dates and times.
    """
    label, names = source.label(name), column_names(config)
    reader = _Reader(first_lines(data, label)[0], label, names, config.time_format)
    complaint = ""
    for number in (pa.int64(), pa.float64()):  # of times
        try:
            table = pa.concat_tables(
                reader.read(pa.py_buffer(piece), number) for piece in pieces(data, _PIECE)
            )
            return table_arrays(table, label, names), {}
        except (pa.ArrowInvalid, DataError) as error:
            complaint = one_line(error)
    reader.raise_fault(data)
    raise DataError(complaint if complaint.startswith(label) else f"{label}: {complaint}")


class _Reader:
    """Reads the columns of events from pieces of a file, with the types of its first lines."""

    def __init__(self, first_line: str, label: str, names: Names, time_format: str | None) -> None:
        self._label, self._names = label, names
        first = self._object(1, first_line)
        find_events(f"{label}, line 1", _keys(first), names)
        self._paths = {column: _path(first, column) for column in names if column is not None}
        self._kinds: list[TimeKind] | None = None
        if names.time is not None and isinstance(time := _value(first, self._paths[names.time]), str):
            self._kinds = time_kinds(time, time_format)
        self._types: dict[str, pa.DataType] = {}
        for column, path in self._paths.items():
            value = _value(first, path)
            if value is None or isinstance(value, bool | list | dict):
                raise DataError(
                    f"{label}, line 1, column {quote(column)}: {quote(value)} is not a number or text"
                )
            kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
            self._types[column] = kinds[type(value)]

    def _schema(self, number: pa.DataType) -> pa.Schema:
        """The types of the columns; those of times, if they are numbers, are ``number``."""
        fields: dict[str, Any] = {}
        for column, path in self._paths.items():
            inner = fields
            for key in path[:-1]:
                inner = inner.setdefault(key, {})
            is_number = column == self._names.time and self._kinds is None
            inner[path[-1]] = number if is_number else self._types[column]
        return pa.schema(_fields(fields))

    def read(self, piece: pa.Buffer, number: pa.DataType) -> pa.Table:
        """A table of the columns; times that are numbers have the type ``number``. Raises pa.ArrowInvalid."""
        table = arrow_json.read_json(
            pa.BufferReader(piece),
            arrow_json.ReadOptions(block_size=_BLOCK),
            arrow_json.ParseOptions(explicit_schema=self._schema(number), unexpected_field_behavior="ignore"),
        )
        columns = {}
        for name, path in self._paths.items():
            column = table[path[0]]
            for key in path[1:]:
                column = pc.struct_field(column, key)
            if name == self._names.time:
                columns[name] = column if self._kinds is None else self._times(column)
            else:
                columns[name] = column.dictionary_encode()
        return pa.table(columns)

    def _times(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        assert self._kinds is not None
        for kind in self._kinds[:-1]:
            try:
                return convert(column, kind)
            except pa.ArrowInvalid:
                continue
        return convert(column, self._kinds[-1])

    def raise_fault(self, data: pa.Buffer) -> None:
        """Raises DataError for the first invalid line, if a line is."""
        number = 0
        for piece in pieces(data, _PIECE):
            for line in piece.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff").split("\n"):
                number += 1
                if line.strip():
                    self._check(number, line)
            number -= 1  # a piece ends with a line break, after which there is no line

    def _check(self, number: int, line: str) -> None:
        event, texts = self._object(number, line), []
        for column in self._names:
            value = 0 if column is None else _value(event, self._paths[column])
            where = f"{self._label}, line {number}, column {quote(column)}"
            if isinstance(value, bool | list | dict):
                raise DataError(f"{where}: {quote(value)} is not a number or text")
            if value is not None and column is not None:
                self._check_type(where, column, value)
            texts.append("" if value is None else str(value))
        user, item, time = texts
        is_text = self._kinds is not None
        if fault := value_fault(self._names, user, item, "0" if is_text else time):
            raise DataError(f"{self._label}, line {number}, {fault}")
        if self._kinds is not None and first_invalid([time], self._kinds) is not None:
            where = f"{self._label}, line {number}, column {quote(self._names.time)}"
            raise DataError(f"{where}: {quote(time)} {self._kinds[0].fault}")

    def _check_type(self, where: str, column: str, value: Any) -> None:
        """Raises DataError if the type of a value is not the one that the first event has."""
        kind = self._types[column]
        if isinstance(value, str) != pa.types.is_string(kind):
            words = ("text", "a number") if isinstance(value, str) else ("a number", "text")
            raise DataError(f"{where}: {quote(value)} is {words[0]}, but the first event has {words[1]}")
        if column == self._names.time or not pa.types.is_integer(kind):
            return
        if not (isinstance(value, int) and -(2**63) <= value < 2**63):
            fix = "write all values as text"
            raise DataError(
                f"{where}: {quote(value)} is not an integer of 64 bits, as the first one is; {fix}"
            )

    def _object(self, number: int, line: str) -> dict[str, Any]:
        where = f"{self._label}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            _raise_not_json(where, line, error)
        if isinstance(value, list):
            _raise_list(where)
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object for an event, such as {{...}}, not {quote(value)}")
        return value


def _raise_list(where: str) -> NoReturn:
    fix = "write an object a line, as jq -c '.[]' does"
    raise DataError(f"{where}: a list, not a line for each event; {fix}")


def _raise_not_json(where: str, line: str, error: Exception) -> NoReturn:
    if line.lstrip().startswith("["):
        _raise_list(where)
    if line.lstrip().startswith(("{'", "{u'")):
        what = "a Python literal, not JSON; docs/data.md has a command that converts such files"
        raise DataError(f"{where}: {what}")
    if line.strip() == "{":
        raise DataError(f"{where}: an object over several lines; write an object a line, as jq -c . does")
    raise DataError(f"{where}: not JSON: {one_line(error)}")


def _keys(value: dict[str, Any], prefix: str = "") -> list[str]:
    """The keys of an object and, dotted, of the objects in it."""
    keys = []
    for key, inner in value.items():
        keys.append(f"{prefix}{key}")
        if isinstance(inner, dict):
            keys += _keys(inner, f"{prefix}{key}.")
    return keys


def _path(value: dict[str, Any], name: str) -> list[str]:
    return [name] if name in value else name.split(".")


def _value(value: Any, path: list[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _fields(tree: dict[str, Any]) -> list[pa.Field]:
    return [
        pa.field(key, pa.struct(_fields(kind)) if isinstance(kind, dict) else kind)
        for key, kind in tree.items()
    ]
