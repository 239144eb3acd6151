"""Texts from files and command lines, fit for a message or a terminal: escaped, quoted, shortened."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import islice

MAX_QUOTED = 100  # characters of a quoted value
MAX_LISTED = 10  # names of a list
MAX_MESSAGE = 1500  # characters of a whole message
_MESSAGE_END = 500  # of them after the gap: a message ends with what to do

# Control characters, formats (zero width, direction), lone surrogates (bytes of a file name that is not
# UTF-8), and separators of lines and paragraphs.
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """The text with characters that act on a terminal, line breaks too, as escapes such as \\x1b or \\u202e.

    Without them, a title cannot move the cursor, change colors, reverse its direction or hide a part, and
    every stream takes it.
    """
    if text.isprintable():
        return text
    return "".join(_escape(letter) if unicodedata.category(letter) in _ESCAPED else letter for letter in text)


def shorten(text: str, limit: int = MAX_QUOTED) -> str:
    """The text, or its first `limit` characters and the number of the others."""
    return text if len(text) <= limit else f"{text[:limit]}{_more(len(text) - limit)}"


def quote(value: object) -> str:
    """A value in a message: its repr, of at most `MAX_QUOTED` characters of its text."""
    if isinstance(value, str):
        end = len(value) - MAX_QUOTED
        return repr(value) if end <= 0 else f"{value[:MAX_QUOTED]!r}{_more(end)}"
    try:
        return shorten(repr(value))
    except ValueError:  # Python converts no integer of more than 4,300 digits
        return "an integer of thousands of digits"


def listed(names: Iterable[object]) -> str:
    """Names in a message, separated by commas: the first `MAX_LISTED`, and the number of the others."""
    names = list(names)
    shown = ", ".join(shorten(str(name)) for name in islice(names, MAX_LISTED))
    return shown if len(names) <= MAX_LISTED else f"{shown} and {len(names) - MAX_LISTED:,} more"


def one_line(message: object) -> str:
    """The text of a message or exception on one line, escaped, of about `MAX_MESSAGE` characters at most."""
    return bounded(printable(" ".join(str(message).split())))


def bounded(text: str) -> str:
    """A text of about `MAX_MESSAGE` characters at most: a longer one loses its middle."""
    if len(text) <= MAX_MESSAGE:
        return text
    start = MAX_MESSAGE - _MESSAGE_END
    return f"{text[:start]}{_more(len(text) - MAX_MESSAGE)} ...{text[-_MESSAGE_END:]}"


def _more(characters: int) -> str:
    return f"... ({characters:,} more characters)"


def _escape(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
