"""Packed interactions: every user's items end to end, and the leave-one-out split as arithmetic on them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from recgrela.system.errors import DataError


@dataclass(frozen=True)
class Interactions:
    """Interactions by user, in order of time. Nothing is stored per prefix.

    The split is leave-one-out: of n >= 3 events the last is the test target, the second last the valid
    target, and the first n - 2 are for training. Users with fewer events only train. From 5 events a user
    on, the usual filter, this is RecBole's split; with fewer RecBole's may differ.

    Attributes:
        items: [n_events] int32, item ids in 1..n_items-1, user after user; 0 is padding and never occurs.
        offsets: [n_users + 1] int64; user row u has ``items[offsets[u]:offsets[u + 1]]``.
        user_ids: the original id of each user row (RecBole's id is the row + 1: it counts a padding user).
        item_ids: the original id of each item id; row 0 is "[PAD]".
        titles: a title or None for each item id, or None where the source has no titles.
        n_items: rows of the item table, the padding row included.
        sha256: of the interactions file's bytes after decompression (synthetic set: of its arrays).
        description: source, format, filter, order and counts, ready for JSON. Counts include the padding ids.
            A file named as a known set, under the published filter, also has the paper's counts (Table 1),
            "published".
        dropped_users: original ids that were read but lost every event to the filter.
    """

    items: torch.Tensor
    offsets: torch.Tensor
    user_ids: list[str]
    item_ids: list[str]
    titles: list[str | None] | None
    n_items: int
    sha256: str
    description: dict[str, Any]
    dropped_users: frozenset[str] = frozenset()

    @property
    def n_users(self) -> int:
        """Users with events (without a padding user)."""
        return len(self.user_ids)

    @property
    def n_events(self) -> int:
        return self.items.numel()

    def to(self, device: torch.device | str) -> Interactions:
        """The same interactions with both tensors on ``device``."""
        return dataclasses.replace(self, items=self.items.to(device), offsets=self.offsets.to(device))

    def user_row(self, user: str) -> int:
        """The row of an original user id. Raises DataError if it is unknown or has no events left."""
        row = self._user_rows.get(str(user))
        if row is None:
            why = (
                "has no events left after filtering"
                if str(user) in self.dropped_users
                else "is not in the data"
            )
            raise DataError(f"{self.description['source']}: user {str(user)!r} {why}")
        return row

    @cached_property
    def _user_rows(self) -> dict[str, int]:
        return {token: row for row, token in enumerate(self.user_ids)}

    def host_offsets(self) -> np.ndarray:
        """``offsets`` as an int64 array on the host: a copy and a wait if they are on another device."""
        return self.offsets.cpu().numpy()

    def train_items(self) -> torch.Tensor:
        """[n_train] int32, the items of all training events, user after user."""
        counts = np.diff(self.host_offsets())
        place = np.arange(self.n_events) - np.repeat(np.cumsum(counts) - counts, counts)
        is_train = torch.from_numpy(place < np.repeat(train_counts(counts), counts))
        return self.items[is_train.to(self.items.device)]


def train_counts(event_counts: np.ndarray) -> np.ndarray:
    """How many of each user's first events are for training: [n_users] events -> [n_users]."""
    return np.where(event_counts >= 3, event_counts - 2, event_counts)
