"""All rows of a tensor that is divided over ranks, which the first rank takes piece by piece."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from recgrela.parallel.collectives import check_group, exchange
from recgrela.parallel.rows import RowShards

MAX_NUMBERS = 1 << 22  # numbers of a piece, 16 MiB in float32


@torch.no_grad()
def each_piece(shard: Tensor, rows: RowShards, group: dist.ProcessGroup | None = None) -> Iterator[Tensor]:
    """The rows of the whole tensor in order, on the first rank; nothing on the other ranks.

    All ranks take the iterator to its end, together. No rank stores more than its shard and one piece.

    Args:
        shard: [rows.count, ...], this rank's rows.
        rows: how the rows are divided.
        group: the process group with the ranks of `rows`; None: the default one.

    Yields:
        On the first rank, the next rows [n, ...] on the CPU.
    """
    check_group("each_piece", rows, group)
    failure: RuntimeError | None = None
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
            if rows.rank == 0 and failure is None:
                try:
                    on_host = piece.cpu()
                except RuntimeError as error:  # no memory; the other ranks are sending, so it is raised below
                    failure = error
                else:
                    yield on_host
    if failure is not None:
        raise failure
