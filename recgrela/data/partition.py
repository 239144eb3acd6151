"""Shares of a batch for the processes of a run: without overlap or gap, with about equal numbers of items."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from recgrela.data.windows import Windows
from recgrela.system.errors import ConfigError


class Partition(NamedTuple):
    """How batches are divided among processes.

    Attributes:
        pieces: runs of equal numbers of targets that a batch of objective "all" consists of. The windows of a
            batch depend on it, but not on the number of processes.
        rank: the number of this process.
        world: the number of processes.
    """

    pieces: int = 1
    rank: int = 0
    world: int = 1

    def check(self) -> None:
        """Raises ConfigError if a number is out of range."""
        for name, value in (("train.pieces", self.pieces), ("world", self.world)):
            if value < 1:
                raise ConfigError(f"{name}: {value} is below 1")
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank: {self.rank} is not in 0 .. {self.world - 1}")

    def check_pieces(self) -> None:
        """Raises ConfigError if there are more processes than pieces."""
        if self.world > self.pieces:
            raise ConfigError(
                f"train.pieces: {self.pieces} is below the number of processes, {self.world}; set it to a "
                "multiple of every number of processes that the run will use"
            )

    def pieces_of(self, windows: Windows) -> Windows:
        """This process's share of a batch of objective "all".

        The batch is cut into pieces whose numbers of items differ by at most one. A process has the pieces
        rank, rank + world, ... in this order.
        """
        if self.pieces == 1:
            return windows
        size = windows.num_items
        bounds = np.arange(self.pieces + 1) * size // self.pieces
        windows = windows.cut_at(bounds)
        begins = np.cumsum(windows.lengths) - windows.lengths
        piece = np.searchsorted(bounds, begins, side="right") - 1  # of each window
        return windows.take(piece % self.world == self.rank)

    def samples_of(self, windows: Windows) -> Windows:
        """This process's share of a batch of objective "last", in the order of the batch.

        Samples are sorted by length and dealt in turns that change their direction: 0 .. world - 1,
        world - 1 .. 0, and so on. The numbers of samples differ by at most one.
        """
        if self.world == 1:
            return windows
        size = windows.users.size
        turn, place = np.divmod(np.arange(size), self.world)
        owner = np.where(turn % 2 == 0, place, self.world - 1 - place)
        longest_first = np.argsort(-windows.lengths, kind="stable")
        return windows.take(np.sort(longest_first[owner == self.rank]))
