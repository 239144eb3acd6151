"""Batches computed on demand: the host chooses windows, the device gathers their items.

The host knows the start and length of every window from the users' offsets, so that it never reads a shape
back from the device. Only the windows of a batch are copied to the device; the rest is computed there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from recgrela.data.batch import Batch
from recgrela.data.interactions import Interactions
from recgrela.data.partition import Partition
from recgrela.data.permutation import Permutation
from recgrela.data.sampling import ORDER, WholeWindows, prefix_windows
from recgrela.data.users import UserTable
from recgrela.data.windows import Windows, gather
from recgrela.settings.train import Objective
from recgrela.system.errors import ConfigError, DataError

ROWS_AT_ONCE = 1 << 16
EVALUATED = 0  # the seed of the choice of users, for all runs


class TrainBatches:
    """Training batches of every user's training events, in a new random order each epoch.

    Every target occurs exactly once per epoch. Every batch but the last has `batch_size` targets.

    Objective "last": a sample is (user, end); up to ``max_len`` items before ``end`` predict the item there.
    Objective "all": a sample is a window of up to ``max_len`` items; each item predicts the next. A user with
    more than ``max_len`` targets gives several windows, cut at a random position and then every ``max_len``
    items; the cuts differ between epochs. A window that does not fit into a batch is cut at the batch's end,
    so that batches have the same number of items whatever the lengths of windows.

    Args:
        data: the interactions; moved to ``device`` if they are elsewhere.
        objective: "last" or "all".
        max_len: the longest input sequence.
        batch_size: targets per batch; an epoch keeps its last, smaller batch.
        seed: an epoch's batches are a pure function of (seed, epoch).
        device: the device that the batches are made on.
        pieces, rank, world: the share of every batch that this process has; see `Partition`. All processes
            have the same number of batches, and a share may be empty.

    Attributes:
        partition: the share of every batch that this process has.

    Raises:
        ConfigError: a setting is out of range, or objective "all" has fewer pieces than processes.
        DataError: no user has two training events, so there is nothing to predict.
    """

    def __init__(
        self,
        data: Interactions,
        objective: Objective,
        max_len: int,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        *,
        pieces: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if objective not in ("last", "all"):
            raise ConfigError(f"objective: {objective!r} is not one of last, all")
        _check_sizes(max_len, batch_size)
        if seed < 0:
            raise ConfigError(f"seed: {seed} is below 0")
        self.partition = Partition(pieces, rank, world)
        self.partition.check()
        if objective == "all":
            self.partition.check_pieces()
        self.objective: Objective = objective
        self.max_len = max_len
        self.batch_size = batch_size
        self.seed = seed
        self._items, self._users = data.item_source(device), data.users
        self.num_targets = self._users.num_targets
        if self.num_targets == 0:
            raise DataError(
                f"{data.description['source']}: no user has two training events, so nothing can be predicted"
            )

    @property
    def num_steps(self) -> int:
        """The number of batches in an epoch."""
        return -(-self.num_targets // self.batch_size)

    @property
    def max_seqlen(self) -> int:
        """The length of the longest sequence of any batch."""
        return min(self.max_len, self._users.max_targets)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_step`` on; no items are read for earlier ones."""
        for step, windows in enumerate(self._global_windows(epoch, start_step), start_step):
            if self.objective == "all":
                targets, own = windows.num_items, self.partition.pieces_of(windows)
            else:
                targets, own = windows.users.size, self.partition.samples_of(windows)
            yield gather(self._items, own, self.objective, step, targets)

    def _global_windows(self, epoch: int, start_step: int) -> Iterator[Windows]:
        """The windows of every batch of an epoch, for all processes together."""
        size = self.batch_size
        if self.objective == "all":
            windows = WholeWindows(self._users, self.max_len, self.seed, epoch)
            yield from windows.batches(size, start_step)
        else:
            order = Permutation(self.num_targets, self.seed, epoch, ORDER)
            for first in range(start_step * size, self.num_targets, size):
                numbers = order(np.arange(first, min(first + size, self.num_targets)))
                yield prefix_windows(self._users, self.max_len, numbers)


class EvalBatches:
    """One sequence for each user with a valid and a test target, in the order of the user rows.

    The valid history is all training items; the test history also has the valid item. Both are cut to their
    last ``max_len`` items.

    With several processes, batch k belongs to process k % world, and a process iterates over its own only.

    Args:
        data: the interactions; moved to ``device`` if they are elsewhere.
        split: "valid" or "test".
        max_len: the longest input sequence.
        batch_size: users per batch.
        device: the device that the batches are made on.
        max_users: the largest number of users; a fixed permutation of the rows chooses them, so every run on
            the data has the same. None: all users.
        rank: the number of this process.
        world: the number of processes.

    Raises:
        ConfigError: a setting is out of range.
        DataError: no user has three events.

    Attributes:
        users: [num_users] int64, the row of each user in the data, in the order of the batches of all
            processes: ``batch.users`` is ``users[batch.step * batch_size :][: batch.size]``.
        num_users: the number of users of all processes.
        num_batches: the number of batches of all processes; ``len`` is the number of one's own.
        max_seqlen: the length of the longest sequence of any batch, of either split.
    """

    def __init__(
        self,
        data: Interactions,
        split: Literal["valid", "test"],
        max_len: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        *,
        max_users: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if split not in ("valid", "test"):
            raise ConfigError(f"split: {split!r} is not one of valid, test")
        _check_sizes(max_len, batch_size)
        if max_users is not None and max_users < 1:
            raise ConfigError(f"max_users: {max_users} is below 1")
        Partition(1, rank, world).check()
        self.split = split
        self.batch_size = batch_size
        self._items, self._table = data.item_source(device), data.users
        self._max_len = max_len
        self.users = _evaluated(data.users, max_users)
        if self.users.size == 0:
            raise DataError(
                f"{data.description['source']}: no user has three events, so nothing can be evaluated"
            )
        self.num_users = self.users.size
        self.num_batches = -(-self.num_users // batch_size)
        self._steps = range(rank, self.num_batches, world)
        self.max_seqlen = min(max_len, self._table.max_events - 1)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Batch]:
        for step in self._steps:
            yield gather(self._items, self._windows(step, self._max_len), "last", step)

    def seen(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The items in the histories of a batch's users, as indices into scores [B, n_items].

        The whole history counts, not only its last ``max_len`` items. Repeated items occur repeatedly. A
        target that also occurs in the history is included, so ``scores[rows, items] = -inf`` would hide it.

        Returns:
            rows [S] int64 in 0 .. B - 1, and items [S] int64.
        """
        seen = gather(self._items, self._windows(batch.step, None), "last", batch.step)
        rows = torch.arange(batch.size, device=seen.items.device)
        return rows.repeat_interleave(seen.cu_seqlens.diff(), output_size=seen.num_tokens), seen.items

    def _windows(self, step: int, max_len: int | None) -> Windows:
        """The histories of the users of a batch, cut to their last `max_len` items."""
        users = self._table.of_rows(self.users[step * self.batch_size : (step + 1) * self.batch_size])
        history = users.events - (2 if self.split == "valid" else 1)
        lengths = history if max_len is None else np.minimum(history, max_len)
        return Windows(users.rows, users.begins + history - lengths, lengths)


def _evaluated(users: UserTable, max_users: int | None) -> np.ndarray:
    """The rows [B] int64 of users with a valid and a test target, at most `max_users`, ascending."""
    order = None if max_users is None else Permutation(users.num_users, EVALUATED)
    found, left = [np.empty(0, dtype=np.int64)], users.num_users if max_users is None else max_users
    for first in range(0, users.num_users, ROWS_AT_ONCE):
        places = np.arange(first, min(first + ROWS_AT_ONCE, users.num_users))
        rows = places if order is None else order(places)
        found.append(rows[users.of_rows(rows).events >= 3][:left])
        left -= found[-1].size
        if not left:
            break
    return np.sort(np.concatenate(found))


def _check_sizes(max_len: int, batch_size: int) -> None:
    for name, value in (("max_len", max_len), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name}: {value} is below 1")
