"""Suggestions for misspelt names in error messages, found in bounded time."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from recgrela.system.text import MAX_QUOTED

SECONDS = 0.5  # of a search; the words that come later are not compared
MAX_COMPARED = 10_000  # words that are compared with a misspelt one whatever they begin with
_CUTOFF = 0.6  # of difflib's ratio
_BLOCK = 4096  # words


def near_miss(word: str, known: Iterable[str]) -> str:
    """The hint "; did you mean 'x'?" for the known word closest to `word`, or "" if none is close.

    Words longer than a message quotes are not compared. The search takes about `SECONDS` at most, whatever
    the number of words; give an iterator, not a list, where the words are not in memory.
    """
    if not word or len(word) > MAX_QUOTED:
        return ""
    stop = time.monotonic() + SECONDS
    matcher = difflib.SequenceMatcher()
    matcher.set_seq2(word)
    start = word.lower()
    best, ratio, abbreviated = None, _CUTOFF, None
    words, seen = iter(known), 0
    while time.monotonic() < stop and (block := list(islice(words, _BLOCK))):
        if abbreviated is None:  # difflib is case-sensitive and rejects abbreviations
            abbreviated = next((other for other in block if other.lower().startswith(start)), None)
        if seen >= MAX_COMPARED:
            block = [other for other in block if other[:1] == word[:1] and abs(len(other) - len(word)) < 2]
        seen += _BLOCK
        for other in block:
            if len(other) > MAX_QUOTED:
                continue
            if time.monotonic() > stop:
                break
            matcher.set_seq1(other)
            if matcher.real_quick_ratio() < ratio or matcher.quick_ratio() < ratio:
                continue
            if (found := matcher.ratio()) >= ratio and (best is None or found > ratio):
                best, ratio = other, found
    if best is None and abbreviated is not None and len(abbreviated) <= MAX_QUOTED:
        best = abbreviated
    return "" if best is None else f"; did you mean {best!r}?"


def near_file(path: Path) -> str:
    """`near_miss` among the other names in the folder of `path`; "" if the folder cannot be listed."""
    try:
        return near_miss(path.name, _names(path))
    except OSError:  # the caller reports its own error; the suggestion is optional
        return ""


def _names(path: Path) -> Iterator[str]:
    with os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name != path.name:
                yield entry.name
