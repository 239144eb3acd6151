"""The unfiltered log that readers return: one row per event, in file order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Events:
    """Events as read from a file, before filtering.

    Attributes:
        users: [n] int32 indices into ``user_tokens``.
        items: [n] int32 indices into ``item_tokens``.
        times: [n] int64, or float64 if the source has fractional times.
        user_tokens: distinct original user ids.
        item_tokens: distinct original item ids.
        sha256: hash of the file's bytes after decompression; of several files, see `joined_sha256`.
        source: the file's name in messages.
        format: the name of the format.
        titles: titles by original item id, if known.
        ticks: the number of units of the times in a second since 1970; None if the file has plain numbers.
        dropped: numbers of events that were read but are not here, by reason.
        unusual: numbers of events here whose ids look like a missing one, by id.
        names: names of all columns of the file, if it has any.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    user_tokens: list[str]
    item_tokens: list[str]
    sha256: str
    source: str
    format: str
    titles: dict[str, str] = field(default_factory=dict)
    ticks: int | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    unusual: dict[str, int] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    @property
    def events_read(self) -> int:
        """The number of events in the source."""
        return self.users.size + sum(self.dropped.values())


def joined_sha256(digests: Sequence[str]) -> str:
    """The hash of a source of several files: of the text of their hashes, one after another."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def joined_source(sources: Sequence[str]) -> str:
    """The name of a source of several files in messages."""
    more = len(sources) - 1
    return sources[0] + (f" and {more:,} more" if more else "")
