"""One way to take a whole training step, and its measurement: ours, plain PyTorch, torch.compile of it."""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import published
from benchmarks.gpu.breakdown import breakdown
from benchmarks.gpu.measure import is_cuda
from benchmarks.gpu.packages import describe
from benchmarks.steps import Setting
from benchmarks.timing import OURS
from python_tests.cases.gated_rela import ATTENTION
from recgrela.data import Batch, DataConfig, TrainBatches, load
from recgrela.training.session import open_session

WITHOUT_GRAPHS = "recgrela without CUDA graphs"
PLAIN, COMPILED = "plain PyTorch", "torch.compile of plain PyTorch"
LR = 1e-3

Record = dict[str, Any]


class Steps(NamedTuple):
    """Steps to measure.

    Attributes:
        take: takes the next step.
        loss: reads the mean loss, or that of the last step.
        note: what the report should say.
    """

    take: Callable[[], None]
    loss: Callable[[], float]
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One way to take a training step.

    Attributes:
        setting: sizes of the step.
        way: `OURS`, `WITHOUT_GRAPHS`, `PLAIN` or `COMPILED`.
        seconds: time that must be left to begin.
    """

    setting: Setting
    way: str
    seconds: float = 10.0


@dataclass(frozen=True)
class Amount:
    """How much to measure: batches that take turns, warm-up and measured rounds of all batches."""

    batches: int = 4
    warm_up: int = 3
    rounds: int = 5
    profiled: int = 3  # steps


def measure_steps(take: Callable[[], object], device: str, steps: int) -> dict[str, float]:
    """Median milliseconds of a step, and of the host in it."""
    cuda = is_cuda(device)
    marks: list[Any] = []
    host: list[float] = []

    def mark() -> None:
        if cuda:
            marks.append(torch.cuda.Event(enable_timing=True))
            marks[-1].record()
        else:
            marks.append(time.perf_counter())

    mark()
    for _ in range(steps):
        began = time.perf_counter()
        take()
        host.append(time.perf_counter() - began)
        mark()
    if cuda:
        torch.cuda.synchronize()
        times = [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
    else:
        times = [1e3 * (b - a) for a, b in itertools.pairwise(marks)]
    return {"ms": statistics.median(times), "host_ms": 1e3 * statistics.median(host)}


def measure(make: Callable[[], Steps], device: str, n: Amount) -> Record:
    """The record of steps that `make` prepares: times, peak memory, loss and kinds of kernels."""
    if is_cuda(device):
        torch.cuda.reset_peak_memory_stats()
    take, loss, note = make()
    for _ in range(n.warm_up * n.batches):
        take()
    record: Record = dict(measure_steps(take, device, n.rounds * n.batches))
    if is_cuda(device):
        record["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
    record["loss"] = loss()
    if not math.isfinite(record["loss"]):
        return record | {"status": "failed", "fault": f"the loss is {record['loss']}"}
    record |= {"status": "passed"} | ({"note": note} if note else {})
    try:
        record["kinds"] = breakdown(device, take, n.profiled)
    except RuntimeError as error:  # the profiler may lack permissions
        record["note"] = describe(error)
    return record


def whole_batches(batches: TrainBatches, count: int) -> list[Batch]:
    """The first batches of an epoch, which have all their targets."""
    return list(itertools.islice(batches.epoch(0), count))


def make_ours(row: Row, device: str, n: Amount, data: DataConfig) -> Steps:
    """Our steps, as `python -m recgrela.train` takes them."""
    graphs = "auto" if row.way == OURS else "false"
    session = open_session(row.setting.run_config(device, graphs, data))
    session.model.train()
    batches = enumerate(itertools.cycle(whole_batches(session.batches, n.batches)), start=1)
    taken = 0

    def take() -> None:
        nonlocal taken
        taken, batch = next(batches)
        session.take_step(batch, LR)

    return Steps(take, lambda: session.step.loss_sum.item() / taken, "; ".join(session.notes))


def padded(batch: Batch, length: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Items and targets [size, length], and lengths [size] (objective "last": targets [B]), padded with 0."""
    lengths = torch.nn.functional.pad(batch.cu_seqlens.diff(), (0, size - batch.size))
    mask = torch.arange(length, device=lengths.device) < lengths[:, None]

    def dense(x: Tensor) -> Tensor:
        return torch.zeros_like(mask, dtype=torch.int64).masked_scatter(mask, x)

    target = batch.target if batch.objective == "last" else dense(batch.target)
    return dense(batch.items), target, lengths


def make_peer(row: Row, device: str, n: Amount, data: DataConfig) -> Steps:
    """The published model in plain PyTorch, or compiled, on the same batches."""
    setting, last = row.setting, row.setting.objective == "last"
    torch.manual_seed(0)
    events = load(data)
    form = ATTENTION["bidirectional" if last else "causal_chunked"]
    model = published.Published(form, events.n_items, data.max_len).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    found = whole_batches(
        TrainBatches(events, setting.objective, data.max_len, setting.batch_size, 0, device), n.batches
    )
    size = max(batch.size for batch in found)
    batches = itertools.cycle([padded(batch, data.max_len, size) for batch in found])
    compute = model.loss_last if last else model.loss_all
    if row.way == COMPILED:
        compute = torch.compile(compute, dynamic=False)
    losses: list[Tensor] = []

    def take() -> None:
        items, target, lengths = next(batches)
        adam.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=setting.amp):
            loss = compute(items, lengths, target) if last else compute(items, target)
        loss.backward()
        adam.step()
        losses[:] = [loss.detach()]

    return Steps(take, lambda: losses[0].item())


def measure_row(row: Row, device: str, n: Amount, data: DataConfig) -> Record:
    """The record of a row; an error is its result."""
    record: Record = {"setting": row.setting.name, "way": row.way}
    make = make_ours if row.way in (OURS, WITHOUT_GRAPHS) else make_peer
    try:
        return record | measure(lambda: make(row, device, n, data), device, n)
    except Exception as error:  # the other rows must still run
        return record | {"status": "failed", "fault": describe(error)}
    finally:  # memory for the next row, which may run in another process
        gc.collect()
        if is_cuda(device):
            torch.cuda.empty_cache()
