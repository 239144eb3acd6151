"""Plain lines on a console."""

from __future__ import annotations

from rich.console import Console

from recgrela.system.text import printable


def say(console: Console, text: str) -> None:
    """Print one line without markup, emoji codes, colors or wrapping; control characters are escaped."""
    console.print(printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True)
