"""A user and their items a line, in order: `user item item item ...`."""

from __future__ import annotations

import re

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
    separator = separator_of(config.separator) or _find_separator(first_lines(data, label)[0], label)
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


def _find_separator(line: str, label: str) -> str:
    """The separator in the first line. Raises DataError if there are two, as in `1, 2` or `1: 2,3`."""
    found = next((one for one in _CANDIDATES if len(split(line, one, False)) > 1), SPACES)
    for value in split(line, found, False):
        if other := re.search("[,;|]|:$", value):
            first, second = (quote(one) for one in (found, other[0]))
            fix = "write one between all ids, or set data.separator if the other is a part of ids"
            raise DataError(f"{label}, line 1: ids are separated by {first} and by {second}; {fix}")
    return found


class _NoItemsError(Exception):
    """A line has a user and no item."""


def _read_lines(lines: bytes, separator: str, is_start: bool) -> tuple[pa.Array, pa.Array]:
    """Whole lines as events: the users [n] and the items [n], as dictionary arrays.

    Raises:
        pa.ArrowInvalid: an id is not UTF-8.
    """
    lines = lines.removeprefix(b"\xef\xbb\xbf") if is_start else lines
    lines = lines.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
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
