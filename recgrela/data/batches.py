"""Batches computed on demand: the host chooses windows, the device gathers their items.

The host knows the start and length of every window from the users' offsets, so that it never reads a shape
back from the device. Only the windows of a batch are copied to the device; the rest is computed there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from recgrela.data.batch import Batch
from recgrela.data.interactions import Interactions
from recgrela.data.partition import Partition
from recgrela.data.permutation import Permutation
from recgrela.data.sampling import ORDER, WholeWindows, prefix_windows
from recgrela.data.split import SPLITS, SplitName
from recgrela.data.windows import Windows, gather
from recgrela.settings.train import Objective
from recgrela.system.errors import ConfigError, DataError


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
    """One sequence for each target of a split, in the order of the user rows and, for a user, of time.

    The history of a target is all items before it: in test it has the events of valid too. It is cut to its
    last ``max_len`` items.

    With several processes, batch k belongs to process k % world, and a process iterates over its own only.

    Args:
        data: the interactions; moved to ``device`` if they are elsewhere.
        split: "valid" or "test".
        max_len: the longest input sequence.
        batch_size: targets per batch.
        device: the device that the batches are made on.
        max_users: the largest number of users, whose targets are all evaluated; a fixed permutation of the
            rows chooses them, so every run on the data has the same. None: all users.
        rank: the number of this process.
        world: the number of processes.

    Raises:
        ConfigError: a setting is out of range.
        DataError: the split has no target.

    Attributes:
        users: [num_targets] int64, the row of the user of each target in the data, in the order of the
            batches of all processes: ``batch.users`` is ``users[batch.step * batch_size :][: batch.size]``.
            The targets of a user are next to each other.
        num_targets: the number of targets of all processes.
        num_users: the number of users of all processes.
        num_batches: the number of batches of all processes; ``len`` is the number of one's own.
        max_seqlen: an upper limit of the length of a sequence, of either split.
        max_size: an upper limit of the number of sequences of a batch, of either split.
    """

    def __init__(
        self,
        data: Interactions,
        split: SplitName,
        max_len: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        *,
        max_users: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if split not in SPLITS:
            raise ConfigError(f"split: {split!r} is not one of valid, test")
        _check_sizes(max_len, batch_size)
        if max_users is not None and max_users < 1:
            raise ConfigError(f"max_users: {max_users} is below 1")
        Partition(1, rank, world).check()
        self.split = split
        self.batch_size = batch_size
        self._items, self._targets = data.item_source(device), data.targets(split)
        self._max_len = max_len
        self.users, self._numbers = self._targets.choose(max_users)
        if self.users.size == 0:
            why = "no user has three events" if data.split is None else f"{split} has no target"
            raise DataError(f"{data.description['source']}: {why}, so nothing can be evaluated")
        self.num_targets = self.users.size
        self.num_users = 1 + int(np.count_nonzero(np.diff(self.users)))
        self.num_batches = -(-self.num_targets // batch_size)
        self._steps = range(rank, self.num_batches, world)
        self.max_seqlen = min(max_len, data.users.max_events - 1)
        # Both splits have the same users, or the other one may have more targets.
        sizes = [self.num_targets] if data.split is None else [data.split.valid.size, data.split.test.size]
        self.max_size = min(batch_size, max(sizes))

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Batch]:
        for step in self._steps:
            yield gather(self._items, self._windows(step, self._max_len), "last", step)

    def seen(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The items in the histories of a batch's targets, as indices into scores [B, n_items].

        The whole history counts, not only its last ``max_len`` items. Repeated items occur repeatedly. A
        target that also occurs in the history is included, so ``scores[rows, items] = -inf`` would hide it.

        Returns:
            rows [S] int64 in 0 .. B - 1, and items [S] int64.
        """
        seen = gather(self._items, self._windows(batch.step, None), "last", batch.step)
        rows = torch.arange(batch.size, device=seen.items.device)
        return rows.repeat_interleave(seen.cu_seqlens.diff(), output_size=seen.num_tokens), seen.items

    def _windows(self, step: int, max_len: int | None) -> Windows:
        """The histories of the targets of a batch, cut to their last `max_len` items."""
        batch = slice(step * self.batch_size, (step + 1) * self.batch_size)
        users, starts, history = self._targets.histories(self.users[batch], self._numbers[batch])
        lengths = history if max_len is None else np.minimum(history, max_len)
        return Windows(users, starts + history - lengths, lengths)


def _check_sizes(max_len: int, batch_size: int) -> None:
    for name, value in (("max_len", max_len), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name}: {value} is below 1")
