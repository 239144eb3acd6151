"""The targets of valid and test: which users have them, and the history of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from recgrela.data.permutation import Permutation
from recgrela.data.split import SPLITS, Split, SplitName
from recgrela.data.users import UserTable, range_places
from recgrela.data.windows import Windows

ROWS_AT_ONCE = 1 << 16
EVALUATED = 0  # the seed of the choice of users, for all runs


class EvalTargets(Protocol):
    """The targets of a split."""

    def choose(self, max_users: int | None) -> tuple[np.ndarray, np.ndarray]:
        """The targets of at most `max_users` users, in order of user rows and, for a user, of time.

        Returns:
            The user row of each target, [T] int64, and its number for `histories`, [T] int64.
        """
        ...

    def histories(self, users: np.ndarray, numbers: np.ndarray) -> Windows:
        """The whole histories of some targets, given as `choose` returns them."""
        ...


class LeaveOneOutTargets:
    """The last event (test) or the second last (valid) of each user with three, by arithmetic."""

    def __init__(self, users: UserTable, split: SplitName) -> None:
        self._users, self._back = users, {"valid": 2, "test": 1}[split]

    def choose(self, max_users: int | None) -> tuple[np.ndarray, np.ndarray]:
        """See `EvalTargets`; the number of a target is the row of its user."""
        rows = _choose_rows(
            self._users.num_users, max_users, lambda rows: self._users.of_rows(rows).events >= 3
        )
        return rows, rows

    def histories(self, users: np.ndarray, numbers: np.ndarray) -> Windows:
        """See `EvalTargets`."""
        found = self._users.of_rows(users)
        return Windows(found.rows, found.begins, found.events - self._back)


class SplitTargets:
    """The targets of a split that is given by arrays."""

    def __init__(self, users: UserTable, split: Split, name: SplitName) -> None:
        self._users, self._split, self._column = users, split, 1 + SPLITS.index(name)
        self._positions = split.positions(name)

    def choose(self, max_users: int | None) -> tuple[np.ndarray, np.ndarray]:
        """See `EvalTargets`; the number of a target counts all targets of the split."""
        rows = _choose_rows(self._users.num_users, max_users, lambda rows: self._targets(rows)[1] > 0)
        first, counts = self._targets(rows)
        return np.repeat(rows, counts), range_places(first, counts)

    def histories(self, users: np.ndarray, numbers: np.ndarray) -> Windows:
        """See `EvalTargets`."""
        return Windows(users, self._users.of_rows(users).begins, self._positions.rows(numbers))

    def _targets(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of the first target, and the number of targets, of some users."""
        bounds, counts = self._split.of_rows(rows)
        return bounds[:, self._column], counts[:, self._column]


def _choose_rows(
    num_users: int, max_users: int | None, is_evaluated: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The rows [B] int64 of at most `max_users` users that are evaluated, ascending."""
    order = None if max_users is None else Permutation(num_users, EVALUATED)
    found, left = [np.empty(0, dtype=np.int64)], num_users if max_users is None else max_users
    for first in range(0, num_users, ROWS_AT_ONCE):
        places = np.arange(first, min(first + ROWS_AT_ONCE, num_users))
        rows = places if order is None else order(places)
        found.append(rows[is_evaluated(rows)][:left])
        left -= found[-1].size
        if not left:
            break
    return np.sort(np.concatenate(found))
