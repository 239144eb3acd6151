"""Plain lines on a console."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, text: str) -> None:
    """Print one line without markup, colors or wrapping."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
