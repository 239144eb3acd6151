"""Histories to recommend for, as item ids of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from recgrela.data import DataConfig, Interactions, load, load_table
from recgrela.data.packed import is_packed, open_packed
from recgrela.inference.catalogue import Catalogue
from recgrela.settings.data import with_absolute_path, without_split
from recgrela.system.errors import DataError
from recgrela.system.suggest import near_miss
from recgrela.system.text import quote


@dataclass(frozen=True)
class Histories:
    """Histories of users, oldest items first, end to end.

    Attributes:
        users: the original id of each user.
        items: [T] int64 item ids of the model, 1 .. n_items - 1.
        offsets: [B + 1] int64; the items of user u are items[offsets[u] : offsets[u + 1]].
        skipped_items: [B] int64, the number of events of each user that are left out, because the model does
            not know their items.
    """

    users: list[str]
    items: np.ndarray
    offsets: np.ndarray
    skipped_items: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    @property
    def skipped(self) -> int:
        """The number of events that are left out."""
        return int(self.skipped_items.sum())

    @property
    def lengths(self) -> np.ndarray:
        """[B] int64, the number of items of each history."""
        return np.diff(self.offsets)

    def of(self, user: int) -> np.ndarray:
        """The items of a history."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def take(self, users: np.ndarray) -> Histories:
        """Some histories, given by their indices."""
        rows = [self.of(user) for user in users]
        offsets = np.cumsum([0, *map(len, rows)])
        items = np.concatenate(rows) if rows else self.items[:0]
        return Histories([self.users[user] for user in users], items, offsets, self.skipped_items[users])

    def find(self, users: Sequence[str], source: str) -> Histories:
        """The histories of some users, in their order.

        Raises:
            DataError: a user has no history; the message names `source` and suggests a similar id.
        """
        rows = self._rows
        for user in users:
            if user not in rows:
                raise DataError(
                    f"{source}: user {quote(user)} is not in the data{near_miss(user, self.users)}"
                )
        return self.take(np.array([rows[user] for user in users], dtype=np.int64))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.users)}

    def check_not_empty(self) -> None:
        """Raises DataError if a history has no item that the model knows."""
        empty = np.flatnonzero(self.lengths == 0)
        if len(empty):
            some = f" and {len(empty) - 1} others" if len(empty) > 1 else ""
            raise DataError(
                f"user {quote(self.users[empty[0]])}{some}: the history has no item that the model knows"
            )

    def without_empty(self) -> Histories:
        """The histories that have items."""
        return self.take(np.flatnonzero(self.lengths > 0))


def from_tokens(catalogue: Catalogue, users: Sequence[str], histories: Sequence[Sequence[str]]) -> Histories:
    """Histories given by original item ids. Items that the model does not know are skipped."""
    found = [catalogue.ids(row) for row in histories]
    kept = [ids[ids > 0] for ids in found]
    lengths = np.array([len(ids) for ids in kept], dtype=np.int64)
    items = np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)
    skipped = np.array([len(ids) for ids in found], dtype=np.int64) - lengths
    return Histories(list(users), items, np.concatenate(([0], np.cumsum(lengths))), skipped)


def from_interactions(catalogue: Catalogue, data: Interactions) -> Histories:
    """The histories of all users of some data; items that the model does not know are skipped."""
    ids = catalogue.ids(data.item_ids)
    ids[0] = 0
    items = ids[data.items.cpu().numpy()]
    known = items > 0
    before = np.concatenate(([0], np.cumsum(known)))
    offsets = before[data.host_offsets()]
    return Histories(
        list(data.user_ids), items[known], offsets, np.diff(data.host_offsets()) - np.diff(offsets)
    )


def load_histories(catalogue: Catalogue, events: str | list[str] | pa.Table, config: DataConfig) -> Histories:
    """The histories in today's events: unlike in training, no user or item is filtered out, or held out.

    The histories of a split by files are the events of training, valid and test, in this order.

    Args:
        catalogue: the model's items.
        events: a path, paths, or an Arrow table, read as `config` says.
        config: the settings of the model's training data.

    Raises:
        DataError: the events cannot be read.
    """
    if isinstance(events, str) and is_packed(events):
        return from_interactions(catalogue, open_packed(events))
    if isinstance(events, str | list) and config.split == "files" and events == config.path:
        data = load(with_absolute_path(config))
    elif isinstance(events, str | list):
        data = load(with_absolute_path(without_split(config, events)))
    else:
        data = load_table(events, without_split(config))
    return from_interactions(catalogue, data)
