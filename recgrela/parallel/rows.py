"""How the rows of an item table are divided over the ranks of a process group."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from recgrela.parallel.processes import Processes


@dataclass(frozen=True)
class RowShards:
    """Contiguous blocks of ceil(n_items / world) rows, one on each rank; row 0, the padding, is on rank 0.

    The last ranks have fewer rows or none if the division leaves a remainder.

    Attributes:
        n_items: number of rows of the whole table.
        rank: this process, 0 .. world - 1.
        world: number of processes.

    Raises:
        ValueError: if a number is out of range.
    """

    n_items: int
    rank: int
    world: int

    def __post_init__(self) -> None:
        if self.n_items < 1 or self.world < 1 or not 0 <= self.rank < self.world:
            raise ValueError(
                f"RowShards: needs n_items and world of at least 1 and rank in 0 .. world - 1, got n_items "
                f"{self.n_items}, rank {self.rank}, world {self.world}"
            )

    @classmethod
    def over(cls, processes: Processes, n_items: int, is_wanted: bool) -> RowShards | None:
        """The rows divided over the processes of a run; None if they are not wanted or there is only one."""
        if processes.is_alone or not is_wanted:
            return None
        return cls(n_items, processes.rank, processes.world)

    @property
    def block(self) -> int:
        """The number of rows of a full block."""
        return -(-self.n_items // self.world)

    @property
    def begin(self) -> int:
        """The first row of this rank."""
        return self.begin_of(self.rank)

    @property
    def end(self) -> int:
        """The row after the last one of this rank."""
        return self.begin_of(self.rank + 1)

    @property
    def count(self) -> int:
        """The number of rows of this rank."""
        return self.end - self.begin

    @property
    def slice(self) -> slice:
        """The rows of this rank in the whole table."""
        return slice(self.begin, self.end)

    def begin_of(self, rank: int) -> int:
        """The first row of a rank; for `world`, the number of all rows."""
        return min(rank * self.block, self.n_items)

    def owner(self, items: Tensor) -> Tensor:
        """The rank of each item's row, of the shape of `items`."""
        return items.div(self.block, rounding_mode="floor")

    def local(self, items: Tensor) -> Tensor:
        """The row of each item in this rank's shard; outside 0 .. count - 1 for items of other ranks."""
        return items - self.begin
