"""The whole of a tensor whose rows are divided over ranks, written by the first rank piece by piece."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from recgrela.parallel.collectives import check_group, exchange
from recgrela.parallel.rows import RowShards
from recgrela.system.errors import ReportedElsewhere

MAX_NUMBERS = 1 << 22  # numbers of a piece, 16 MiB in float32


@torch.no_grad()
def write_rows(
    shard: Tensor, rows: RowShards, group: dist.ProcessGroup | None, write: Callable[[Tensor], object]
) -> None:
    """Gives all rows of a tensor to a function of the first rank, in order. All ranks call it together.

    No rank stores more than its shard and one piece.

    Args:
        shard: [rows.count, ...], this rank's rows.
        rows: how the rows are divided.
        group: the process group with the ranks of `rows`; None: the default one.
        write: called on the first rank only, with the next rows [n, ...] on the CPU.

    Raises:
        ReportedElsewhere: `write` failed; the first rank raises its exception.
    """
    check_group("write_rows", rows, group)
    failure: BaseException | None = None

    def give(piece: Tensor) -> None:
        nonlocal failure
        if failure is None:
            try:
                write(piece.cpu())
            except BaseException as error:  # the other ranks are sending; it is raised below
                failure = error

    each = max(1, MAX_NUMBERS // max(1, shard.shape[1:].numel()))
    for source in range(rows.world):
        count = rows.begin_of(source + 1) - rows.begin_of(source)
        for start in range(0, count, each):
            size = min(each, count - start)
            piece = shard.detach()[start : start + size] if rows.rank == source else shard[:0].detach()
            if source:
                sends, receives = [0] * rows.world, [0] * rows.world
                sends[0] = size if rows.rank == source else 0
                receives[source] = size if rows.rank == 0 else 0
                piece = exchange(piece, sends, receives, group)
            if rows.rank == 0:
                give(piece)
    failed = torch.tensor([failure is not None], device=shard.device).int()
    sends = [1] * rows.world if rows.rank == 0 else [0] * rows.world
    failed = exchange(failed.expand(sum(sends)), sends, [1] + [0] * (rows.world - 1), group)
    if failure is not None:
        raise failure
    if failed.any():
        raise ReportedElsewhere("the first process could not write a sharded tensor")
