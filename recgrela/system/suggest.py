"""Near misses, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def near_miss(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the known word nearest to `word`, or "" when none is near."""
    choices = list(known)
    found = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if not found:  # difflib minds case and length: a word in capitals or cut short is a near miss too
        found = [choice for choice in choices if word and choice.lower().startswith(word.lower())][:1]
    return f"; did you mean {found[0]!r}?" if found else ""


def near_file(path: Path) -> str:
    """`near_miss` among the other names in a path's folder; "" where that cannot be listed."""
    try:
        names = [other.name for other in path.parent.iterdir() if other.name != path.name]
    except OSError:  # the hint is a courtesy: the error that it belongs to is reported all the same
        return ""
    return near_miss(path.name, names)
