"""A user and their items a line, in order: `user item item item ...`."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recgrela.data.formats.columns import Arrays, Columns, no_times, to_arrays
from recgrela.data.formats.layout import first_lines, split
from recgrela.data.formats.pieces import one_byte_separator, pieces
from recgrela.data.formats.source import Source
from recgrela.data.formats.text import has_nul
from recgrela.settings.data import DataConfig
from recgrela.settings.delimited import SPACES, separator_of, separator_word
from recgrela.system.errors import ConfigError, DataError
from recgrela.system.text import one_line, quote

_CANDIDATES = (SPACES, ",", ";", "|")


def read(data: pa.Buffer, source: Source, name: str, config: DataConfig) -> tuple[Arrays, dict[str, str]]:
    """Events of a file of sequences, which have no times; a user may have several lines."""
    label = source.label(name)
    if config.order != "file":
        raise ConfigError(f"data.order: {label} has sequences without times; set --data.order file")
    for key in ("columns", "time_format", "min_rating"):
        if getattr(config, key) is not None:
            raise ConfigError(f"data.{key}: does not apply to sequences, of which {label} has one a line")
    first = first_lines(data, label)[0]
    separator = separator_of(config.separator)
    if separator is None:
        separator = next((one for one in _CANDIDATES if len(split(first, one, False)) > 1), SPACES)
        _refuse_two_separators(first, separator, label)
    plain, byte = one_byte_separator(data, label, separator)
    try:
        parts = [_read_lines(piece, byte, number == 0) for number, piece in enumerate(pieces(plain))]
    except (pa.ArrowInvalid, _NoItemsError) as error:
        raise _fault(data, label, separator, one_line(error)) from None
    users, items = (pa.chunked_array(list(column)) for column in zip(*parts, strict=True))
    arrays = to_arrays(Columns(users, items, no_times(len(users))))
    if not isinstance(arrays, Arrays) or has_nul(arrays):
        raise _fault(data, label, separator, "an invalid id")
    return arrays, {}


def _refuse_two_separators(line: str, separator: str, label: str) -> None:
    """Raises DataError for a user, a separator, and items separated by another: they would be one item."""
    fields = split(line, separator, False)
    others = [other for other in _CANDIDATES[1:] if len(fields) == 2 and len(fields[1].split(other)) > 2]
    if others:
        items, user = separator_word(others[0]), separator_word(separator)
        fix = f"write {user}s for all, such as with tr '{others[0]}' ' ', or set data.separator"
        raise DataError(
            f"{label}, line 1: its items are separated by {items}s, but its user by {user}s; {fix}"
        )


class _NoItemsError(Exception):
    """A line has a user and no item."""


def _read_lines(lines: bytes, separator: str, is_start: bool) -> tuple[pa.Array, pa.Array]:
    """Whole lines as events: the users [n] and the items [n], as dictionary arrays.

    Raises:
        pa.ArrowInvalid: an id is not UTF-8.
    """
    lines = lines.removeprefix(b"\xef\xbb\xbf") if is_start else lines
    lines = lines.replace(b"\r\n", b"\n")
    text = np.frombuffer(lines if lines.endswith(b"\n") else lines + b"\n", np.uint8)
    is_end = text == ord("\n")
    is_break = is_end | (text == ord(separator))
    breaks = np.flatnonzero(is_break)
    lengths = np.diff(breaks, prepend=-1) - 1
    ends_line = is_end[breaks]
    begins_line = np.concatenate(([True], ends_line[:-1]))
    is_empty = begins_line & ends_line & (lengths == 0)
    if (begins_line & ends_line & ~is_empty).any():
        raise _NoItemsError
    offsets = np.concatenate(([0], np.cumsum(lengths[~is_empty]))).astype(np.int32)
    content = pa.py_buffer(text[~is_break].tobytes())
    tokens = pa.Array.from_buffers(
        pa.string(), len(offsets) - 1, [None, pa.py_buffer(offsets.tobytes()), content]
    )
    tokens.validate(full=True)
    is_user = begins_line[~is_empty]
    users = tokens.filter(pa.array(is_user)).dictionary_encode()
    line = np.cumsum(is_user)[~is_user] - 1
    return users.take(pa.array(line)), tokens.filter(pa.array(~is_user)).dictionary_encode()


def _fault(data: pa.Buffer, label: str, separator: str, complaint: str) -> DataError:
    """An error for the first invalid line, or with ``complaint``."""
    number = 0
    for piece in pieces(data):
        for line in piece.decode("utf-8", errors="surrogateescape").splitlines():
            number += 1
            content = line.strip(" \t\r") if separator == SPACES else line
            if not content:
                continue
            user, *items = split(content, separator, False)
            where = f"{label}, line {number}"
            if not items:
                shown = separator_word(separator)
                return DataError(f"{where}: {quote(user)} has no items; is the separator {shown}?")
            if any(letter == "\0" or "\udc80" <= letter <= "\udcff" for letter in line):
                return DataError(f"{where}: an id is not UTF-8 text (wrong encoding, or a damaged file)")
    return DataError(f"{label}: {complaint}")
