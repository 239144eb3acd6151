"""Suggestions for misspelt names in error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def near_miss(word: str, known: Iterable[str]) -> str:
    """The hint "; did you mean 'x'?" for the known word closest to `word`, or "" if none is close."""
    choices = list(known)
    found = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if not found:  # difflib is case-sensitive and rejects abbreviations
        found = [choice for choice in choices if word and choice.lower().startswith(word.lower())][:1]
    return f"; did you mean {found[0]!r}?" if found else ""


def near_file(path: Path) -> str:
    """`near_miss` among the other names in the folder of `path`; "" if the folder cannot be listed."""
    try:
        names = [other.name for other in path.parent.iterdir() if other.name != path.name]
    except OSError:  # the caller reports its own error; the suggestion is optional
        return ""
    return near_miss(path.name, names)
