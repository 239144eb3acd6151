"""A group of processes and the collectives that training needs, over torch.distributed."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from recgrela.parallel.launch import Launch
from recgrela.system.errors import ReportedElsewhere, RunError, one_line

T = TypeVar("T")
FAILED = "failed"


class LostProcess(RunError):
    """Another process ended, or it cannot be reached."""


class Processes:
    """The processes of a run, of which this is one. Every method is a collective: all processes call it.

    A single process, `Processes()`, needs no group, and its collectives do nothing.

    Args:
        launch: the place of this process.

    Attributes:
        launch: the place of this process.
        rank: number of this process, from 0.
        world: number of processes.
    """

    def __init__(self, launch: Launch | None = None) -> None:
        self.launch = launch or Launch()
        self.rank, self.world = self.launch.rank, self.launch.world

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder and the output."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.world == 1

    def sum_(self, tensor: Tensor) -> Tensor:
        """Adds the tensors of all processes, in place. The result has the same bits everywhere."""
        if not self.is_alone:
            with _reported():
                dist.all_reduce(tensor)
        return tensor

    def sum(self, value: float) -> float:
        """The sum of a number over all processes."""
        return float(self.sum_(torch.tensor(value, dtype=torch.float64)))

    def max(self, *values: int) -> list[int]:
        """The maximum of each number over all processes."""
        if self.is_alone:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.int64)
        with _reported():
            dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return numbers.tolist()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, in order of rank, on each of them. Shapes and dtypes are equal."""
        if self.is_alone:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        with _reported():
            dist.all_gather(parts, tensor.contiguous())
        return parts

    def gather_rows(self, tensor: Tensor) -> list[Tensor]:
        """The tensors [n, ...] of all processes, in order of rank; n may differ between processes."""
        if self.is_alone:
            return [tensor]
        counts = [int(count) for count in self.gather(torch.tensor(len(tensor)))]
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        return [part[:count] for part, count in zip(self.gather(padded), counts, strict=True)]

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Gives all processes the tensors of the first one, in place."""
        if self.is_alone:
            return
        with _reported(), torch.no_grad():
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Returns when all processes have called it."""
        if not self.is_alone:
            self.max(0)

    def on_first(self, function: Callable[[], T], meanwhile: Callable[[], object] = lambda: None) -> T:
        """The result of a function that only the first process runs, on all processes.

        Args:
            function: returns a value for JSON.
            meanwhile: what the other processes run, such as their side of an exchange.

        Raises:
            ReportedElsewhere: it raised an exception; the first process raises that exception.
        """
        if self.is_alone:
            return function()
        failure: BaseException | None = None
        text = ""
        if self.is_first:
            try:
                text = json.dumps({"value": function()})
            except BaseException as error:
                failure = error
        else:
            meanwhile()
        text = self._share_text(text)
        if failure is not None:
            raise failure
        if not text:
            raise ReportedElsewhere("the first process failed")
        return json.loads(text)["value"]

    def on_each_host(self, function: Callable[[], T]) -> T:
        """The result of a function that one process of each host runs, on all processes of that host.

        Args:
            function: returns a value for JSON.

        Raises:
            ReportedElsewhere: it raised an exception on some host; the process there raises that exception.
        """
        if self.is_alone:
            return function()
        failure: BaseException | None = None
        text = ""
        if self.launch.local_rank == 0:
            try:
                text = json.dumps({"value": function()})
            except BaseException as error:
                failure, text = error, FAILED
        texts = self.gather_text(text)
        if failure is not None:
            raise failure
        if FAILED in texts:
            raise ReportedElsewhere(f"process {texts.index(FAILED)} failed")
        return json.loads(texts[self.rank - self.launch.local_rank])["value"]

    def gather_text(self, text: str) -> list[str]:
        """The texts of all processes, in order of rank."""
        data = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        return [part.numpy().tobytes().decode().strip() for part in self.gather_rows(data)]

    def counter(self) -> Callable[[], int]:
        """A function that returns 0, 1, 2, ...; each number is given to one call of one process only."""
        if self.is_alone:
            return itertools.count().__next__
        host = os.environ["MASTER_ADDR"]
        store: list[dist.TCPStore] = []

        def serve() -> int:
            store.append(dist.TCPStore(host, 0, is_master=True, wait_for_workers=False))
            return store[0].port

        port = self.on_first(serve)
        with _reported():
            shared = store[0] if store else dist.TCPStore(host, port, is_master=False)

        def take() -> int:
            with _reported():
                return shared.add("next", 1) - 1

        return take

    def _share_text(self, text: str) -> str:
        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0)
        size = torch.tensor(len(data))
        self.share([size])
        if not int(size):
            return ""
        if not self.is_first:
            data = torch.empty(int(size), dtype=torch.uint8)
        self.share([data])
        return data.numpy().tobytes().decode()


@contextmanager
def join(
    device: torch.device, launch: Launch, timeout: timedelta = timedelta(hours=2)
) -> Iterator[Processes]:
    """A context in which this process belongs to the group of the launched processes.

    Tensors on the CPU are exchanged by gloo, those on a GPU by NCCL.

    Args:
        device: the device of this process, PyTorch's current one if it is a GPU.
        launch: the place of this process.
        timeout: how long a process waits for the others in a collective; the default suffices for one that
            reads and packs the data.

    Raises:
        LostProcess: the others cannot be reached.
    """
    if launch.world == 1:
        yield Processes(launch)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _reported():
        store, *_ = next(dist.rendezvous("env://", launch.rank, launch.world, timeout=timeout))
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(meet(store, launch.rank, launch.world, timeout), store),
            rank=launch.rank,
            world_size=launch.world,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
    try:
        yield Processes(launch)
    except BaseException:
        if dist.group.WORLD is not None:
            dist.group.WORLD.abort()  # NCCL must not wait for others, which may be in a collective
        raise
    finally:
        # Otherwise a thread of gloo may free a tensor while Python ends, which aborts the process.
        dist.destroy_process_group()


def meet(store: dist.Store, rank: int, world: int, timeout: timedelta) -> str:
    """A name that only the processes that are running now agree on, for the keys of their group.

    torchrun keeps its store when it restarts processes, and the keys of processes that have ended would be
    taken for those of the new ones. So each process announces a new token, and the first one answers it.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"recgrela/token/{rank}", own)
        name = store.get(f"recgrela/answer/{own}").decode()
        store.set(f"{name}/here/{rank}", "1")
        return name
    name, missing = f"recgrela/{own}", set(range(1, world))
    answered, deadline = set[str](), time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"recgrela/token/{other}"]):
                token = store.get(f"recgrela/token/{other}").decode()
                if token not in answered:  # also those of processes that have ended, which nobody reads
                    store.set(f"recgrela/answer/{token}", name)
                    answered.add(token)
        missing = {other for other in missing if not store.check([f"{name}/here/{other}"])}
        if missing and time.monotonic() > deadline:
            raise RuntimeError(f"processes {sorted(missing)} have not started")
        if missing:
            time.sleep(0.02)
    return name


@contextmanager
def _reported() -> Iterator[None]:
    """Turns errors of collectives into `LostProcess`."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        # gloo's text begins with the place in its sources and ends with advice.
        detail = re.sub(r"^\[[^]]*\] ?", "", one_line(error)).partition(". This is typically")[0]
        raise LostProcess(
            f"lost the connection to another process, whose own message has the reason ({detail})"
        ) from error
