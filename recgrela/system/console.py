"""Plain lines on a console."""

from __future__ import annotations

from rich.console import Console

# Control characters, which could move a terminal's cursor or change its colors, as visible escapes.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))}


def printable(text: str) -> str:
    """The text with control characters, line breaks too, written as escapes such as \\x1b."""
    return text.translate(_ESCAPES)


def say(console: Console, text: str) -> None:
    """Print one line without markup, colors or wrapping; control characters are shown as escapes."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
