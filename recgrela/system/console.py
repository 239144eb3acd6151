"""Plain lines on a console."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from recgrela.system.text import printable


def print_whole(console: Console, *tables: Table) -> None:
    """Print tables; a narrow terminal wraps their lines instead of cutting numbers."""
    options = console.options.update(max_width=1000)
    before = console.width
    console.width = max(before, *(console.measure(table, options=options).maximum for table in tables))
    try:
        console.print(*tables)
    finally:
        console.width = before


def say(console: Console, text: str) -> None:
    """Print one line without markup, emoji codes, colors or wrapping; control characters are escaped."""
    console.print(printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True)
