"""An item table whose rows are divided over the ranks of a process group, and how models use either kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.ops import linear_cross_entropy
from recgrela.parallel.rows import RowShards
from recgrela.parallel.score_blocks import TargetRanks
from recgrela.parallel.sharded_cross_entropy import sharded_linear_cross_entropy
from recgrela.parallel.sharded_embedding import distinct_rows, sharded_embedding
from recgrela.parallel.sharded_ranks import sharded_ranks

# Numbers that are drawn at a time. A multiple of 16, the numbers that PyTorch's normal_ draws together, so
# that blocks continue one stream.
DRAWN = 1 << 20


class ShardedTable(nn.Module):
    """The rows of an item table that this rank has; row 0 of the whole table is the padding item.

    Args:
        rows: how the rows of the table are divided.
        width: D.
        group: the process group with the ranks of `rows`; None: the default one.

    Attributes:
        weight: [rows.count, D], drawn as the weights of `nn.Embedding`.
        rows, group: as given.
        embedding_dim: D.
    """

    def __init__(self, rows: RowShards, width: int, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.rows, self.group, self.embedding_dim = rows, group, width
        self.weight = nn.Parameter(torch.empty(rows.count, width))
        draw(self.weight, nn.init.normal_, rows)
        if rows.rank == 0:
            with torch.no_grad():
                self.weight[0].zero_()

    def forward(self, items: Tensor) -> Tensor:
        """Item ids [T] int64 -> rows [T, D]; see `sharded_embedding`."""
        return sharded_embedding(items, self.weight, self.rows, self.group, padding_idx=0)

    def ranks(
        self,
        hidden: Tensor,
        target: Tensor,
        removed: tuple[Tensor, Tensor],
        bias: Tensor | None = None,
        k: int = 0,
    ) -> TargetRanks:
        """Ranks of targets and the best items; see `sharded_ranks`."""
        return sharded_ranks(hidden, target, removed, self.weight, self.rows, self.group, bias, k=k)

    def extra_repr(self) -> str:
        rows = self.rows
        return f"rows {rows.begin} to {rows.end - 1} of {rows.n_items}, {self.embedding_dim}"


Table = Tensor | ShardedTable  # rows [n_items, D], or those of this rank

_ROWS: ContextVar[tuple[RowShards, dist.ProcessGroup | None] | None] = ContextVar("_ROWS", default=None)


@contextmanager
def sharded_tables(rows: RowShards, group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Within it, `make_table` makes sharded tables, as a model's constructor does for its item table."""
    token = _ROWS.set((rows, group))
    try:
        yield
    finally:
        _ROWS.reset(token)


def make_table(n_items: int, width: int) -> nn.Embedding | ShardedTable:
    """An item table [n_items, width], whole, or sharded within `sharded_tables`.

    Raises:
        ValueError: the rows of `sharded_tables` are those of another table.
    """
    sharded = _ROWS.get()
    if sharded is None:
        return nn.Embedding(n_items, width, padding_idx=0)
    rows, group = sharded
    if rows.n_items != n_items:
        raise ValueError(f"rows are divided for {rows.n_items} items, but the table has {n_items}")
    return ShardedTable(rows, width, group)


def draw(parameter: Tensor, fill: Callable[[Tensor], object], rows: RowShards | None = None) -> None:
    """Fills a parameter with the random numbers that the whole table gets.

    Numbers are drawn in blocks of `DRAWN`, and all but this rank's are dropped, so that the weights and the
    random number generator do not depend on how the rows are divided. `nn.init.normal_` of the whole table
    gives the same numbers on the CPU.

    Args:
        parameter: [n_items, ...], or [rows.count, ...] of a sharded table.
        fill: fills a tensor of one dimension.
        rows: how the rows are divided; None: `parameter` is whole.
    """
    n_items = parameter.shape[0] if rows is None else rows.n_items
    each = parameter.shape[1:].numel()
    begin, end = (0, n_items * each) if rows is None else (rows.begin * each, rows.end * each)
    flat, start, total = parameter.detach().view(-1), 0, n_items * each
    while start < total:
        stop = start + DRAWN if total - start >= DRAWN + 16 else total  # normal_ draws 16 or more as a stream
        block = flat.new_empty(stop - start)
        fill(block)
        low, high = max(start, begin), min(stop, end)
        if low < high:
            flat[low - begin : high - begin] = block[low - start : high - start]
        start = stop


def rows_for(table: Table, items: Tensor) -> tuple[Tensor, Tensor, int | None]:
    """The first operands of `recgrela.ops.embedding` that look items up: rows, places and `padding_idx`.

    The rows of a sharded table are those of the distinct items, fetched from all ranks.
    """
    if isinstance(table, ShardedTable):
        return *distinct_rows(items, table.weight, table.rows, table.group, padding_idx=0), None
    return table, items, 0


def rows_of(table: Table, items: Tensor) -> Tensor:
    """Item ids [T] int64 -> rows of the table [T, D], with a gradient for the padding row too."""
    if isinstance(table, ShardedTable):
        return sharded_embedding(items, table.weight, table.rows, table.group)
    return F.embedding(items, table)


def biases_of(table: Table, bias: Tensor, items: Tensor) -> Tensor:
    """Item ids [T] int64 -> item biases [T]; `bias` has the items of the table, or of its shard."""
    if isinstance(table, ShardedTable):
        return sharded_embedding(items, bias[:, None], table.rows, table.group)[:, 0]
    return bias[items]


def cross_entropy(
    hidden: Tensor,
    table: Table,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`linear_cross_entropy` over every row of a table, or `sharded_linear_cross_entropy`.

    Args:
        hidden: [T, D]; T may be 0 with a sharded table only.
        table: the table.
        target: [T] int64.
        bias: item biases of the table, or of its shard, or None.
        label_smoothing: see `linear_cross_entropy`.
    """
    if isinstance(table, ShardedTable):
        return sharded_linear_cross_entropy(
            hidden, table.weight, target, table.rows, table.group, bias, label_smoothing=label_smoothing
        )
    return linear_cross_entropy(hidden, table, target, bias, label_smoothing=label_smoothing)
