"""Suggestions for misspelt names in error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from recgrela.system.text import MAX_QUOTED

MAX_COMPARED = 10_000  # words that are compared with a misspelt one


def near_miss(word: str, known: Iterable[str]) -> str:
    """The hint "; did you mean 'x'?" for the known word closest to `word`, or "" if none is close.

    Words longer than a message quotes are not compared.
    """
    if len(word) > MAX_QUOTED:
        return ""
    choices = [choice for choice in known if len(choice) <= MAX_QUOTED]
    if len(choices) > MAX_COMPARED:  # difflib compares about 50,000 words per second
        alike = (choice for choice in choices if choice[:1] == word[:1] and abs(len(choice) - len(word)) < 2)
        choices = list(islice(alike, MAX_COMPARED))
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
