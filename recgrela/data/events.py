"""The unfiltered log that readers return: one row per event, in file order."""

from __future__ import annotations

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
        sha256: hash of the file's bytes after decompression.
        source: the file's name in messages.
        format: the name of the format.
        titles: titles by original item id, if known.
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
