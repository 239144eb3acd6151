"""Exchanges of rows between the ranks of a process group, and agreement on operands before an exchange.

Every exchange is an `all_to_all_single` of torch.distributed, which NCCL and gloo have; all ranks call it
together. The receiver sums in the order of the ranks, so that results are deterministic. One rank alone needs
no process group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from recgrela.parallel.processes import _reported
from recgrela.parallel.rows import RowShards


def exchange(
    x: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup | None
) -> Tensor:
    """Sends rows of x [sum(send), ...], the first send[0] to rank 0 and so on.

    Args:
        x: the rows, in the order of the ranks that they go to.
        send, receive: number of rows to and from each rank.
        group: the process group; None: the default one.

    Returns:
        [sum(receive), ...], in the order of the ranks that the rows come from.

    Raises:
        LostProcess: another process ended, or it cannot be reached.
    """
    if len(send) == 1:
        return x
    received = x.new_empty(sum(receive), *x.shape[1:])
    with _reported():
        dist.all_to_all_single(received, x.contiguous(), list(receive), list(send), group=group)
    return received


def gather(x: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
    """The rows x [n, ...] of every rank, [sum(counts), ...], in the order of the ranks."""
    world = len(counts)
    if world == 1:
        return x
    copies = x.expand(world, *x.shape).flatten(0, 1)
    return exchange(copies, [x.shape[0]] * world, counts, group)


def sum_to_owners(x: Tensor, counts: Sequence[int], rank: int, group: dist.ProcessGroup | None) -> Tensor:
    """x [sum(counts), ...] on every rank -> the sums over ranks of this rank's rows, [counts[rank], ...]."""
    world = len(counts)
    if world == 1:
        return x
    parts = exchange(x, counts, [counts[rank]] * world, group)
    return parts.unflatten(0, (world, counts[rank])).sum(0)


def error_of(check: Callable[[], None]) -> Exception | None:
    """The ValueError or TypeError that a check raises, or None."""
    try:
        check()
    except (ValueError, TypeError) as error:
        return error
    return None


def agree(
    op: str,
    rows: RowShards,
    group: dist.ProcessGroup | None,
    device: torch.device,
    error: Exception | None,
    same: Mapping[str, float],
    own: Sequence[Sequence[float]],
) -> list[list[float]]:
    """Exchanges numbers and makes every rank fail if one does, so that none waits for a failed one.

    The host waits for the device.

    Args:
        op: the op's name, for the messages.
        rows: the ranks.
        group: the process group.
        device: the device of the exchange.
        error: what is wrong with this rank's operands, or None.
        same: numbers that must be equal on all ranks, by name.
        own: [world][k], numbers for each rank.

    Returns:
        [world][k], the numbers of each rank for this one.

    Raises:
        ValueError, TypeError: `error`.
        ValueError: another rank has an error, or `same` differs.
    """
    if rows.world == 1:
        if error is not None:
            raise error
        return [list(numbers) for numbers in own]
    status = [float(error is not None), *same.values()]
    # float64 holds sizes up to 2^53 exactly.
    table = torch.tensor([[*status, *numbers] for numbers in own], dtype=torch.float64).to(device)
    each = [1] * rows.world
    received = exchange(table, each, each, group).tolist()
    if error is not None:
        raise error
    failed = [str(rank) for rank, numbers in enumerate(received) if numbers[0]]
    if failed:
        raise ValueError(f"{op}: the operands of rank {', '.join(failed)} are wrong; its error says how")
    for i, name in enumerate(same, 1):
        values = [numbers[i] for numbers in received]
        if len(set(values)) > 1:
            listed = ", ".join(f"{value:g}" for value in values)
            raise ValueError(f"{op}: {name} must be the same on all ranks, got {listed} on ranks 0, 1, ...")
    return [numbers[len(status) :] for numbers in received]


def check_group(op: str, rows: RowShards, group: dist.ProcessGroup | None) -> None:
    """Check that the ranks of `rows` are those of the process group.

    Raises:
        ValueError: if they are not, or there is no process group.
    """
    if rows.world == 1:
        return
    if not dist.is_initialized():
        raise ValueError(f"{op}: {rows.world} ranks need a process group; call init_process_group first")
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    if (rank, world) != (rows.rank, rows.world):
        raise ValueError(
            f"{op}: rows are divided for rank {rows.rank} of {rows.world}, but the process group has rank "
            f"{rank} of {world}"
        )


def dtype_number(dtype: torch.dtype) -> int:
    """A number of a floating dtype that is equal on all ranks."""
    return [torch.float16, torch.bfloat16, torch.float32, torch.float64].index(dtype)
