"""The training windows of an epoch in random order, by arithmetic and without an array of all of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recgrela.data.permutation import Permutation, hash64, keys
from recgrela.data.users import Users, UserTable
from recgrela.data.windows import Windows

ORDER, CUTS = 0, 1  # uses of a seed
SKIPPED_AT_ONCE = 1 << 15  # slots, about 5 MB


def prefix_windows(users: UserTable, max_len: int, numbers: np.ndarray) -> Windows:
    """The samples of objective "last": up to `max_len` items before each of some targets [B] int64."""
    found = users.of_targets(numbers)
    ends = numbers - found.first_targets + 1  # [B] the target's index among the user's events
    lengths = np.minimum(ends, max_len)
    return Windows(found.rows, found.begins + ends - lengths, lengths)


class WholeWindows:
    """The windows of objective "all" in an epoch: each target of a user is in one window.

    A user with up to `max_len` targets has one window. A user with more has windows that are cut at a
    pseudorandom place in 1 .. `max_len` and then every `max_len` items.

    Windows are in slots, some of which are empty, and the order of the slots is a `Permutation`. Slot u is
    for the first window of user row u. The others are for later windows, which begin `max_len` targets apart:
    the numbers of all targets are divided into cells of `max_len`. At most two users with more than `max_len`
    targets have targets in a cell, and each begins at most one window there, so a cell has two slots.

    Args:
        users: the users of the data.
        max_len: the longest window.
        seed: numbers; the windows and their order are a pure function of them.
    """

    def __init__(self, users: UserTable, max_len: int, *seed: int) -> None:
        self._users, self._max_len = users, max_len
        self.num_slots = users.num_users + 2 * -(-users.num_targets // max_len)
        self._order = Permutation(self.num_slots, *seed, ORDER)
        self._key = keys(*seed, CUTS)[0]

    def batches(self, size: int, start: int) -> Iterator[Windows]:
        """Batches of `size` targets from batch `start` on; the last one may have fewer.

        A window that does not fit into a batch is cut, and the rest of it begins the next batch.
        """
        slot, rest = self._skip(start * size)
        # About as many slots as a batch takes, in arrays that are not too small for NumPy.
        at_once = max(512, -(-size * self.num_slots // max(self._users.num_targets, 1)))
        while slot < self.num_slots or rest.users.size:
            parts, found = [rest], rest.num_items
            while found < size and slot < self.num_slots:
                parts.append(self._windows(slot, at_once))
                found += parts[-1].num_items
                slot += at_once
            whole = join(parts)
            if found > size:
                yield whole.slice(0, size)
                rest = whole.slice(size, found)
            else:
                if found:
                    yield whole
                rest = whole.take(slice(0))

    def _skip(self, targets: int) -> tuple[int, Windows]:
        """The slot after some number of targets, and the windows before it that are not skipped."""
        slot, rest = 0, self._windows(0, 0)
        while targets and slot < self.num_slots:
            windows = self._windows(slot, SKIPPED_AT_ONCE)
            slot += SKIPPED_AT_ONCE
            found = windows.num_items
            rest = windows.slice(min(targets, found), found)
            targets -= min(targets, found)
        return slot, rest

    def _windows(self, slot: int, count: int) -> Windows:
        """The windows in some slots, in random order."""
        slots = self._order(np.arange(slot, min(slot + count, self.num_slots)))
        is_first = slots < self._users.num_users
        first, later = self._first(slots[is_first]), self._later(slots[~is_first] - self._users.num_users)
        columns = [np.empty(slots.size, dtype=np.int64) for _ in first]
        for column, one, other in zip(columns, first, later, strict=True):
            column[is_first], column[~is_first] = one, other
        windows = Windows(*columns)
        return windows.take(windows.lengths > 0)

    def _first(self, rows: np.ndarray) -> Windows:
        """The first window of some users, of length 0 for a user without targets."""
        found = self._users.of_rows(rows)
        lengths = np.where(found.targets <= self._max_len, found.targets, self._cuts(found))
        return Windows(rows, found.begins, lengths)

    def _later(self, slots: np.ndarray) -> Windows:
        """The windows in some slots of cells, of length 0 if a slot is empty."""
        cells, side = np.divmod(slots, 2)
        begin = cells * self._max_len
        end = np.minimum(begin + self._max_len, self._users.num_targets)
        # The slots are for the user of the cell's first target and, if it is another, of its last target.
        found = self._users.of_targets(np.where(side == 0, begin, end - 1))
        first = found.first_targets + self._cuts(found)  # the first target that begins a later window
        target = first + -(-np.maximum(begin - first, 0) // self._max_len) * self._max_len
        left = found.first_targets + found.targets - target
        is_other = (side == 0) | (found.first_targets > begin)
        exists = is_other & (found.targets > self._max_len) & (target < end) & (left > 0)
        lengths = np.where(exists, np.minimum(left, self._max_len), 0)
        return Windows(found.rows, found.begins + target - found.first_targets, lengths)

    def _cuts(self, users: Users) -> np.ndarray:
        """The length in 1 .. max_len of the first window of users with several windows."""
        random = hash64(users.rows.astype(np.uint64), self._key) >> np.uint64(32)
        return ((random * np.uint64(self._max_len)) >> np.uint64(32)).astype(np.int64) + 1


def join(parts: list[Windows]) -> Windows:
    """Windows in the order of some parts."""
    return Windows(*map(np.concatenate, zip(*parts, strict=True))) if len(parts) > 1 else parts[0]
