"""The raw log that every reader gives: one row per event, in the file's order."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Events:
    """Events as read, before any filter.

    Attributes:
        users: [n] int32 indices into ``user_tokens``.
        items: [n] int32 indices into ``item_tokens``.
        times: [n] int64, or float64 where the source has fractions.
        user_tokens: original user ids, each once.
        item_tokens: original item ids, each once.
        sha256: of the source's bytes after decompression.
        source: what the user named, for messages.
        format: the reader's name.
        titles: original item id -> title, where known.
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
