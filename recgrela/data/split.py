"""Splits other than leave-one-out: training events, and the targets of valid and test, as arrays.

Every event has a phase: training, valid or test. The phases of a user's events are in this order, so the
training events of a user are the first ones, and everything before a target is its history.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from recgrela.data.permutation import hash64, keys
from recgrela.data.users import range_places, target_counts, train_counts
from recgrela.settings.data import TargetRule
from recgrela.system.errors import DataError

SplitName = Literal["valid", "test"]
SPLITS: tuple[SplitName, ...] = ("valid", "test")
TRAIN, VALID, TEST = range(3)  # phases
_TRAIN = ("users", "events", "targets")  # counts
RANDOM = 0  # the seed of random targets, for all runs


class Rows(Protocol):
    """Rows of an array in memory or in a file."""

    size: int

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Some rows [B] int64."""
        ...

    def ranges(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The rows of some ranges, end to end; starts and lengths are [B] int64."""
        ...

    def blocks(self) -> Iterator[np.ndarray]:
        """The array in blocks, from the beginning."""
        ...


class HostRows:
    """Rows of an array in memory. Args: values: [size] or [size, width]."""

    def __init__(self, values: np.ndarray) -> None:
        self._values, self.size = values, len(values)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """See `Rows`."""
        return self._values[rows]

    def ranges(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """See `Rows`."""
        return self._values[range_places(starts, lengths)]

    def blocks(self) -> Iterator[np.ndarray]:
        """See `Rows`."""
        yield self._values


@dataclass(frozen=True)
class Split:
    """The division of events into those for training and targets.

    Attributes:
        bounds: [n_users + 1, 3] int64: the numbers of training events, valid targets and test targets of all
            earlier users.
        valid, test: [T] int64, the position of each target in the row of its user, at least 1, in order of
            users and positions. The events before it are its history.
    """

    bounds: Rows
    valid: Rows
    test: Rows

    def positions(self, split: SplitName) -> Rows:
        """The positions of the targets of a split."""
        return self.valid if split == "valid" else self.test

    def of_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bounds [B, 3] of some users [B] int64, and their numbers of events and targets [B, 3]."""
        found = self.bounds.ranges(rows, np.full_like(rows, 2)).reshape(-1, 2, 3)
        return found[:, 0], found[:, 1] - found[:, 0]

    def train_counts(self) -> np.ndarray:
        """[n_users] int64, the number of training events of each user, in memory."""
        return np.diff(np.concatenate([block[:, 0] for block in self.bounds.blocks()]))

    def part(self, first: int, last: int) -> SplitPart:
        """The users in rows first .. last - 1."""
        bounds = self.bounds.ranges(np.array([first]), np.array([last - first + 1]))
        begins, sizes = bounds[:1, 1:], bounds[-1:, 1:] - bounds[:1, 1:]
        train, *counts = np.diff(bounds, axis=0).T
        positions = (
            self.positions(split).ranges(begins[:, i], sizes[:, i]) for i, split in enumerate(SPLITS)
        )
        return SplitPart(train, *(Targets(*pair) for pair in zip(counts, positions, strict=True)))

    def sha256(self) -> str:
        """Hash of the split."""
        digests = []
        for array in (self.bounds, self.valid, self.test):
            digest = hashlib.sha256()
            for block in array.blocks():
                digest.update(np.ascontiguousarray(block, dtype="<i8").data)
            digests.append(digest.hexdigest())
        return join_sha256(digests)


def join_sha256(digests: Iterable[str]) -> str:
    """The hash of a split from those of its arrays: bounds, valid, test."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


class Targets(NamedTuple):
    """Targets of some users: the number of each user, [B] int64, and the positions of all, end to end."""

    counts: np.ndarray
    positions: np.ndarray


class SplitPart(NamedTuple):
    """Some users of a split, in the order of their rows. `train` [B] int64 counts training events."""

    train: np.ndarray
    valid: Targets
    test: Targets


class Splitter:
    """Chooses the targets of users, and counts.

    A held-out event can be a target if its user has an event before it. The rule chooses among these events
    of a user, for valid and for test. A chosen target whose item has no training event is cold: no model can
    have learned it, so it is counted and left out.

    Args:
        rule: "last", "first", "random" or "all" of the events that can be targets. The random one is a pure
            function of the user's row and the number of events to choose from.
        is_trained: [n_items] bool, whether each item has a training event.
    """

    def __init__(self, rule: TargetRule, is_trained: np.ndarray) -> None:
        self._rule, self._is_trained, self._row = rule, is_trained, 0
        self._train = np.zeros(3, dtype=np.int64)  # as in _TRAIN
        self._counts = np.zeros((2, 5), dtype=np.int64)  # of valid and of test

    def add(self, events: np.ndarray, phases: np.ndarray, items: np.ndarray) -> SplitPart:
        """The split of the next users.

        Args:
            events: [B] int64, the number of events of each user, at least 1.
            phases: [sum of events] uint8, those of a user ascending.
            items: [sum of events] item ids.
        """
        begins = np.cumsum(events) - events
        ends = [np.add.reduceat(phases <= phase, begins, dtype=np.int64) for phase in (TRAIN, VALID, TEST)]
        self._train += [np.count_nonzero(ends[0]), ends[0].sum(), np.maximum(ends[0] - 1, 0).sum()]
        rows = np.arange(self._row, self._row + events.size).astype(np.uint64)
        parts = []
        for place, (begin, end) in enumerate(itertools.pairwise(ends)):
            first = np.maximum(begin, 1)
            random = hash64(rows, keys(RANDOM, place)[0]) >> np.uint64(32)
            counts, positions = self._choose(first, np.maximum(end - first, 0), random)
            owners = np.repeat(np.arange(events.size), counts)
            is_warm = self._is_trained[items[begins[owners] + positions]]
            warm = np.bincount(owners[is_warm], minlength=events.size)
            cold, headless = np.count_nonzero(~is_warm), np.count_nonzero((begin == 0) & (end > 0))
            numbers = (np.count_nonzero(warm), warm.sum(), cold, headless, (end - begin).sum())
            self._counts[place] += numbers
            parts.append(Targets(warm, positions[is_warm]))
        self._row += events.size
        return SplitPart(ends[0], *parts)

    def _choose(self, first: np.ndarray, count: np.ndarray, random: np.ndarray) -> Targets:
        """Some of the positions first .. first + count - 1 of each user; random is uniform below 2^32."""
        if self._rule == "all":
            return Targets(count, range_places(first, count))
        if self._rule == "random":
            offset = ((random * count.astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
        else:
            offset = count - 1 if self._rule == "last" else np.zeros_like(count)
        return Targets((count > 0).astype(np.int64), (first + offset)[count > 0])

    def describe(self, source: str) -> dict[str, Any]:
        """Counts of the split as values for JSON. Raises DataError if valid or test has no target."""
        names = ("users", "targets", "cold_targets", "users_without_history", "events")
        facts: dict[str, Any] = {"train": dict(zip(_TRAIN, self._train.tolist(), strict=True))}
        for split, numbers in zip(SPLITS, self._counts.tolist(), strict=True):
            facts[split] = counts = dict(zip(names, numbers, strict=True))
            if not counts["targets"]:
                raise DataError(
                    f"{source}: {split} has {counts['events']:,} events but no target: a target needs an "
                    "earlier event of its user, and an item with a training event "
                    f"({counts['cold_targets']:,} chosen events have none); hold out more events, or fewer"
                )
        return facts


def as_split(part: SplitPart) -> Split:
    """A split in memory, from the part that has all users."""
    counts = np.stack((part.train, part.valid.counts, part.test.counts), axis=1)
    bounds = np.concatenate((np.zeros((1, 3), dtype=np.int64), np.cumsum(counts, axis=0)))
    return Split(HostRows(bounds), HostRows(part.valid.positions), HostRows(part.test.positions))


class LeaveOneOutCounts:
    """Counts of leave-one-out, as those of a `Splitter`."""

    def __init__(self) -> None:
        self._train = np.zeros(3, dtype=np.int64)
        self._held_out = 0

    def add(self, events: np.ndarray) -> None:
        """Counts the next users, [B] int64, by their numbers of events."""
        train = train_counts(events)
        self._train += [events.size, train.sum(), target_counts(events).sum()]
        self._held_out += int(np.count_nonzero(train < events))

    def describe(self) -> dict[str, Any]:
        """See `Splitter.describe`."""
        train = dict(zip(_TRAIN, self._train.tolist(), strict=True))
        held_out = dict.fromkeys(("users", "targets", "events"), self._held_out)
        return {"train": train, "valid": held_out, "test": held_out}
