"""The users of packed interactions: where the events and the targets of each begin."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class Users(NamedTuple):
    """Some users. A user's targets are the items after each of the training events but the last.

    Attributes:
        rows: [B] int64 user rows.
        begins: [B] int64 position of the first event in `Interactions.items`.
        events: [B] int64 number of events.
        first_targets: [B] int64 number of the first target; targets are numbered user by user.
        targets: [B] int64 number of targets.
    """

    rows: np.ndarray
    begins: np.ndarray
    events: np.ndarray
    first_targets: np.ndarray
    targets: np.ndarray


class UserTable(Protocol):
    """Looks up users.

    Attributes:
        num_users: number of users.
        num_targets: number of targets of all users.
        max_events: the largest number of events of a user.
        max_targets: the largest number of targets of a user.
    """

    num_users: int
    num_targets: int
    max_events: int
    max_targets: int

    def of_rows(self, rows: np.ndarray) -> Users:
        """The users of some rows [B] int64."""
        ...

    def of_targets(self, numbers: np.ndarray) -> Users:
        """The users that some targets [B] int64 belong to."""
        ...


class ArrayUserTable:
    """Users in memory.

    Args:
        offsets: [n_users + 1] int64, as in `Interactions`.
        train: [n_users] int64, the number of training events of each user; None: leave-one-out.
    """

    def __init__(self, offsets: np.ndarray, train: np.ndarray | None = None) -> None:
        events = np.diff(offsets)
        targets = target_counts(events, train)
        self._offsets = offsets
        self._target_starts = np.concatenate(([0], np.cumsum(targets)))
        self.num_users = events.size
        self.num_targets = int(self._target_starts[-1])
        self.max_events, self.max_targets = int(events.max(initial=0)), int(targets.max(initial=0))

    def of_rows(self, rows: np.ndarray) -> Users:
        """See `UserTable`."""
        begins, first = self._offsets[rows], self._target_starts[rows]
        return Users(
            rows, begins, self._offsets[rows + 1] - begins, first, self._target_starts[rows + 1] - first
        )

    def of_targets(self, numbers: np.ndarray) -> Users:
        """See `UserTable`."""
        return self.of_rows(np.searchsorted(self._target_starts, numbers, side="right") - 1)


def train_counts(event_counts: np.ndarray) -> np.ndarray:
    """Number of training events of each user: [n_users] events -> [n_users]."""
    return np.where(event_counts >= 3, event_counts - 2, event_counts)


def target_counts(event_counts: np.ndarray, train: np.ndarray | None = None) -> np.ndarray:
    """Number of targets [n_users] of users with some numbers of events, all and (see above) for training."""
    return np.maximum((train_counts(event_counts) if train is None else train) - 1, 0)


def held_out_places(offsets: np.ndarray, train: np.ndarray | None = None) -> np.ndarray:
    """The places of the events that are not for training.

    Args:
        offsets: [n_users + 1] int64, where users begin and end.
        train: [n_users] int64, the number of training events of each user; None: leave-one-out.
    """
    if train is not None:
        begins = offsets[:-1] + train
        return range_places(begins, offsets[1:] - begins)
    ends = offsets[1:][np.diff(offsets) >= 3]
    return np.concatenate((ends - 2, ends - 1))


def range_places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers in some ranges, end to end; starts and lengths are [B] int64."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if ends.size else 0)
