"""Large texts in pieces of whole lines, and their separators as one byte, which pyarrow needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from recgrela.settings.delimited import SPACES
from recgrela.system.errors import DataError
from recgrela.system.text import quote

SIZE = 1 << 24  # bytes
_UNUSED = (b"\x1f", b"\x1e", b"\x1d", b"\x01", b"\x02")  # control characters that replace longer separators
_SPACE, _TAB, _NEWLINE, _RETURN = (ord(letter) for letter in " \t\n\r")


def pieces(data: pa.Buffer, size: int = SIZE) -> Iterator[bytes]:
    """The text in pieces of whole lines and about ``size`` bytes, more only if a line is longer."""
    view, begin = memoryview(data), 0
    while begin < len(view):
        end = begin + size
        while end < len(view) and (cut := bytes(view[begin:end]).rfind(b"\n")) < 0:
            end += size
        end = begin + cut + 1 if end < len(view) else len(view)
        yield bytes(view[begin:end])
        begin = end


def one_byte_separator(data: pa.Buffer, label: str, separator: str) -> tuple[pa.Buffer, str]:
    """The text with a separator of one byte, and that separator; lines stay in their places.

    Raises:
        DataError: the text contains every character that could replace the separator, or a longer run of the
            separator's letter, such as `:::`.
    """
    if separator == SPACES:
        return _replaced(data, single_spaced), SPACES
    longer = separator.encode()
    if len(longer) == 1:
        return data, separator
    found = next((byte for byte in _UNUSED if re.search(byte, data) is None), None)
    if found is None:
        raise DataError(f"{label}: contains the control characters \\x1f, \\x1e, \\x1d, \\x01 and \\x02")
    lines = 1  # before the piece, and 1

    def replace(piece: bytes) -> bytes:
        nonlocal lines
        if len({*longer}) == 1:
            _check_runs(piece, label, longer, lines)
        lines += piece.count(b"\n")
        return piece.replace(longer, found)

    return _replaced(data, replace), found.decode()


def _check_runs(piece: bytes, label: str, separator: bytes, first_line: int) -> None:
    """Raises DataError for a run of a letter that is not a whole number of separators of this letter."""
    letter = separator[:1]
    if separator + letter not in piece:
        return
    for run in re.finditer(re.escape(separator + letter) + re.escape(letter) + b"*", piece):
        if len(run[0]) % len(separator):
            line = first_line + piece.count(b"\n", 0, run.start())
            shown, word = quote(run[0].decode()), quote(separator.decode())
            raise DataError(f"{label}, line {line}: {shown} is not clear, as the separator is {word}")


def _replaced(data: pa.Buffer, change: Callable[[bytes], bytes]) -> pa.Buffer:
    changed = pa.BufferOutputStream()
    for piece in pieces(data):
        changed.write(change(piece))
    return changed.getvalue()


def single_spaced(lines: bytes) -> bytes:
    """Whole lines with one space for each run of spaces and tabs, and without spaces at their ends."""
    text = np.frombuffer(lines, np.uint8)
    text = np.where(text == _TAB, np.uint8(_SPACE), text)
    is_space, is_end = text == _SPACE, (text == _NEWLINE) | (text == _RETURN)
    before = np.concatenate(([True], (is_space | is_end)[:-1]))
    text = text[~(is_space & before)]
    is_space, is_end = text == _SPACE, (text == _NEWLINE) | (text == _RETURN)
    after = np.concatenate((is_end[1:], [True]))
    return text[~(is_space & after)].tobytes()
