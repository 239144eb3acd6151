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
from recgrela.data.interactions import Interactions, train_counts
from recgrela.data.partition import Partition
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
        self._partition = Partition(pieces, rank, world)
        self._partition.check()
        if objective == "all":
            self._partition.check_pieces()
        self.objective: Objective = objective
        self.max_len = max_len
        self.batch_size = batch_size
        self.seed = seed
        self._items = data.items.to(device)
        offsets = data.host_offsets()
        self._first = offsets[:-1]  # [n_users] index of each user's first event
        self._targets = np.maximum(train_counts(np.diff(offsets)) - 1, 0)  # [n_users]
        self._target_starts = np.cumsum(self._targets) - self._targets  # [n_users] each user's first target
        self.num_targets = int(self._targets.sum())
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
        return min(self.max_len, int(self._targets.max()))

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_step`` on; earlier batches cost nothing."""
        for step, windows in enumerate(self._global_windows(epoch, start_step), start_step):
            if self.objective == "all":
                targets, own = windows.num_items, self._partition.pieces_of(windows)
            else:
                targets, own = windows.users.size, self._partition.samples_of(windows)
            yield gather(self._items, own, self.objective, step, targets)

    def _global_windows(self, epoch: int, start_step: int) -> Iterator[Windows]:
        """The windows of every batch of an epoch, for all processes together."""
        random, size = self._random(epoch, "order"), self.batch_size
        if self.objective == "all":
            windows = self._whole_windows(epoch)
            windows = windows.take(random.permutation(windows.users.size))
            windows = windows.cut_at(np.arange(self.num_steps) * size)
            # A batch has the windows that end within it.
            limits = np.arange(1, self.num_steps + 1) * size
            ends = np.searchsorted(np.cumsum(windows.lengths), limits, side="right")
            for step in range(start_step, self.num_steps):
                yield windows.take(slice(ends[step - 1] if step else 0, ends[step]))
        else:
            number = self.num_targets
            order = random.permutation(np.arange(number, dtype=np.int32 if number < 2**31 else np.int64))
            for step in range(start_step, self.num_steps):
                yield self._prefix_windows(order[step * size : (step + 1) * size])

    def _random(self, epoch: int, use: Literal["cuts", "order"]) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, ("cuts", "order").index(use)])

    def _prefix_windows(self, samples: np.ndarray) -> Windows:
        """Sample numbers [B] -> windows. Numbers count the targets of user 0, then of user 1, and so on."""
        users = np.searchsorted(self._target_starts, samples, side="right") - 1
        ends = samples - self._target_starts[users] + 1  # [B] the target's index among the user's events
        lengths = np.minimum(ends, self.max_len)
        return Windows(users, self._first[users] + ends - lengths, lengths)

    def _whole_windows(self, epoch: int) -> Windows:
        """All windows of objective "all": the inputs [0, cut), [cut, cut + max_len), ... of each user."""
        cuts = self._random(epoch, "cuts").integers(1, self.max_len + 1, size=self._targets.size)
        cuts = np.where(self._targets <= self.max_len, self._targets, cuts)
        later = -((cuts - self._targets) // self.max_len)  # windows after the first, rounded up
        counts = np.where(self._targets > 0, 1 + later, 0)  # [n_users]
        users = np.repeat(np.arange(self._targets.size), counts)  # [windows]
        number = np.arange(users.size) - np.repeat(np.cumsum(counts) - counts, counts)  # 0.. within a user
        begins = np.where(number > 0, cuts[users] + (number - 1) * self.max_len, 0)
        ends = np.minimum(cuts[users] + number * self.max_len, self._targets[users])
        return Windows(users, self._first[users] + begins, ends - begins)


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
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if split not in ("valid", "test"):
            raise ConfigError(f"split: {split!r} is not one of valid, test")
        _check_sizes(max_len, batch_size)
        Partition(1, rank, world).check()
        self.split = split
        self.batch_size = batch_size
        self._items = data.items.to(device)
        offsets = data.host_offsets()
        events = np.diff(offsets)
        users = np.flatnonzero(events >= 3)
        if users.size == 0:
            raise DataError(
                f"{data.description['source']}: no user has three events, so nothing can be evaluated"
            )
        history = events[users] - (2 if split == "valid" else 1)
        self._whole = Windows(users, offsets[users], history)
        lengths = np.minimum(history, max_len)
        self._cut = Windows(users, offsets[users] + history - lengths, lengths)
        self.num_users = users.size
        self.num_batches = -(-users.size // batch_size)
        self._steps = range(rank, self.num_batches, world)
        self.users = users
        self.max_seqlen = min(max_len, int(events.max()) - 1)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Batch]:
        for step in self._steps:
            yield gather(self._items, self._cut.take(self._rows(step)), "last", step)

    def seen(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The items in the histories of a batch's users, as indices into scores [B, n_items].

        The whole history counts, not only its last ``max_len`` items. Repeated items occur repeatedly. A
        target that also occurs in the history is included, so ``scores[rows, items] = -inf`` would hide it.

        Returns:
            rows [S] int64 in 0 .. B - 1, and items [S] int64.
        """
        windows = self._whole.take(self._rows(batch.step))
        seen = gather(self._items, windows, "last", batch.step)
        rows = torch.arange(batch.size, device=seen.items.device)
        return rows.repeat_interleave(seen.cu_seqlens.diff(), output_size=seen.num_tokens), seen.items

    def _rows(self, step: int) -> slice:
        return slice(step * self.batch_size, (step + 1) * self.batch_size)


def _check_sizes(max_len: int, batch_size: int) -> None:
    for name, value in (("max_len", max_len), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name}: {value} is below 1")
