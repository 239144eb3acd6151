"""Packed interactions: all users' items concatenated, and their split."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from recgrela.data.split import Split, SplitName
from recgrela.data.targets import EvalTargets, LeaveOneOutTargets, SplitTargets
from recgrela.data.users import ArrayUserTable, UserTable, held_out_places
from recgrela.data.windows import DeviceItems, ItemSource
from recgrela.system.errors import DataError
from recgrela.system.text import quote


@dataclass(frozen=True)
class Interactions:
    """Interactions by user, in order of time.

    Without a `split`, it is leave-one-out: of n >= 3 events the last is the test target, the second last the
    valid target, and the first n - 2 are for training. All events of users with n < 3 are for training. For
    users with at least 5 events, the usual filter, this is RecBole's split.

    Attributes:
        items: [n_events] int32, item ids in 1..n_items-1, user by user; 0 is padding and does not occur.
        offsets: [n_users + 1] int64; the items of user row u are ``items[offsets[u]:offsets[u + 1]]``.
        user_ids: the original id of each user row (RecBole's id is the row + 1, as it has a padding user).
        item_ids: the original id of each item id; row 0 is "[PAD]".
        titles: a title or None for each item id; None if the source has no titles.
        n_items: number of rows of the item table, padding included.
        sha256: hash of the file's bytes after decompression (of the arrays for the synthetic set).
        description: source, format, filter, order, split and counts, as values for JSON. Counts of users and
            items include padding ids, except those of the split. "published" has the paper's counts (Table 1)
            for a file with the name and filter of a known set.
        dropped_users: original ids of the users without events after filtering.
        split: another split than leave-one-out.
    """

    items: torch.Tensor
    offsets: torch.Tensor
    user_ids: Sequence[str]
    item_ids: list[str]
    titles: list[str | None] | None
    n_items: int
    sha256: str
    description: dict[str, Any]
    dropped_users: frozenset[str] = frozenset()
    split: Split | None = None

    @property
    def n_users(self) -> int:
        """Number of users with events, without a padding user."""
        return len(self.user_ids)

    @property
    def n_events(self) -> int:
        return self.items.numel()

    def to(self, device: torch.device | str) -> Interactions:
        """A copy with both tensors on ``device``."""
        return dataclasses.replace(self, items=self.items.to(device), offsets=self.offsets.to(device))

    def user_row(self, user: str) -> int:
        """The row of an original user id. Raises DataError if the user is unknown or has no events."""
        row = self.find_user(str(user))
        if row is None or row >= self.n_users:
            why = "is not in the data" if row is None else "has no events left after filtering"
            raise DataError(f"{self.description['source']}: user {quote(str(user))} {why}")
        return row

    def find_user(self, user: str) -> int | None:
        """The row of a user, at least `n_users` if the user has no events; None if the user is unknown."""
        return self._user_rows.get(user, self.n_users if user in self.dropped_users else None)

    @cached_property
    def _user_rows(self) -> dict[str, int]:
        return {token: row for row, token in enumerate(self.user_ids)}

    @cached_property
    def users(self) -> UserTable:
        """Where the events and the training targets of every user begin."""
        return ArrayUserTable(self.host_offsets(), self._train_counts())

    def targets(self, split: SplitName) -> EvalTargets:
        """The targets of valid or test."""
        if self.split is None:
            return LeaveOneOutTargets(self.users, split)
        return SplitTargets(self.users, self.split, split)

    def item_source(self, device: torch.device | str) -> ItemSource:
        """The items, to gather batches from on a device."""
        return DeviceItems(self.items.to(device))

    def host_offsets(self) -> np.ndarray:
        """``offsets`` as an int64 array on the host. Copies and waits if they are on another device."""
        return self.offsets.cpu().numpy()

    def packed_sha256(self) -> str:
        """Hash of the filtered and ordered events."""
        digest = hashlib.sha256()
        for part, kind in ((self.items, np.int32), (self.offsets, np.int64)):
            digest.update(np.ascontiguousarray(part.cpu().numpy(), dtype=kind).data)
        return digest.hexdigest()

    def train_item_counts(self) -> torch.Tensor:
        """[n_items] int64, the number of training events of each item."""
        offsets = self.host_offsets()
        counts = torch.bincount(self.items, minlength=self.n_items)
        held_out = torch.from_numpy(held_out_places(offsets, self._train_counts())).to(self.items.device)
        return counts - torch.bincount(self.items[held_out], minlength=self.n_items)

    def _train_counts(self) -> np.ndarray | None:
        return None if self.split is None else self.split.train_counts()
