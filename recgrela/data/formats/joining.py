"""Joins the events of several files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from recgrela.data.events import Events, joined_sha256, joined_source
from recgrela.system.errors import DataError


class SameTimes:
    """The kind of times that several files have together; raises DataError for one that does not fit."""

    def __init__(self) -> None:
        self.ticks: int | None = None
        self._first: str | None = None

    def add(self, part: Events) -> None:
        """Takes a further file into account."""
        if self._first is None:
            self._first, self.ticks = part.source, part.ticks
        if (self.ticks is None) != (part.ticks is None):
            numbers, dates = "plain numbers", "dates"
            raise DataError(
                f"{part.source}: times are {numbers if part.ticks is None else dates}, but those of "
                f"{self._first} are {dates if part.ticks is None else numbers}; write both in one way"
            )
        if part.ticks is not None and self.ticks is not None:
            self.ticks = max(self.ticks, part.ticks)

    def scaled(self, times: np.ndarray, ticks: int | None, source: str) -> np.ndarray:
        """Times of a file in the finest unit so far."""
        factor = 1 if ticks is None or self.ticks is None else self.ticks // ticks
        if factor == 1:
            return times
        bound = (2**63 - 1) // factor
        if times.dtype.kind == "i" and times.size and (times.max() > bound or times.min() < -bound):
            raise DataError(f"{source}: its times are out of range in 1/{self.ticks} s, the unit of others")
        return times * factor


def join(parts: Sequence[Events]) -> Events:
    """The events of all parts, in their order, as one. Raises DataError if their times differ in kind."""
    if len(parts) == 1:
        return parts[0]
    times = SameTimes()
    for part in parts:
        times.add(part)
    users, user_tokens = _join_ids((part.users, part.user_tokens) for part in parts)
    items, item_tokens = _join_ids((part.items, part.item_tokens) for part in parts)
    titles: dict[str, str] = {}
    for part in parts:
        titles |= part.titles
    return Events(
        users,
        items,
        np.concatenate([times.scaled(part.times, part.ticks, part.source) for part in parts]),
        user_tokens,
        item_tokens,
        joined_sha256([part.sha256 for part in parts]),
        joined_source([part.source for part in parts]),
        parts[0].format,
        titles,
        ticks=times.ticks,
        dropped=added(part.dropped for part in parts),
        unusual=added(part.unusual for part in parts),
        names=parts[0].names,
    )


def added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Sums of counts by name."""
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(total)


def _join_ids(parts: Iterable[tuple[np.ndarray, list[str]]]) -> tuple[np.ndarray, list[str]]:
    numbers: dict[str, int] = {}
    codes = []
    for old, tokens in parts:
        new = np.array([numbers.setdefault(token, len(numbers)) for token in tokens], dtype=np.int32)
        codes.append(new[old])
    return np.concatenate(codes), list(numbers)
