"""Joins concurrent requests into calls of the engine by one thread."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from recgrela.serve.engine import ANSWERING, Engine
from recgrela.serve.metrics import Metrics
from recgrela.serve.queries import Query
from recgrela.store import Event
from recgrela.system.errors import DataError, OutOfMemory, UserError

logger = logging.getLogger(__name__)


class Busy(Exception):
    """The queue is full, or the server is stopping."""


@dataclass
class Job:
    """A request for the engine, and its answer."""

    future: Future[Any] = field(default_factory=Future, init=False)

    @property
    def size(self) -> int:
        """What it adds to the size of a batch."""
        return 1


@dataclass
class AddJob(Job):
    """Store events; the answer is a list of `Receipt`."""

    events: list[Event]

    @property
    def size(self) -> int:
        return len(self.events)


@dataclass
class QueryJob(Job):
    """Recommend; the answer is a `Found`."""

    query: Query


@dataclass
class CallJob(Job):
    """Any other call of the engine; the answer is what the function returns."""

    call: Callable[[Engine], Any]


class Batcher:
    """A queue of jobs, and the thread that takes them in batches to the engine.

    A batch has the jobs that have arrived while the engine was busy. Its events are stored in one transaction
    before its queries are answered.

    Args:
        engine: the first engine; `swap` replaces it.
        metrics: counters of batches and errors.
        max_batch: number of events and queries at which a batch is closed.
        max_wait: seconds that the first job of a batch waits for others.
        max_queue: number of jobs that may wait; `submit` refuses more.
    """

    def __init__(
        self, engine: Engine, metrics: Metrics, *, max_batch: int, max_wait: float, max_queue: int
    ) -> None:
        self.engine = engine
        self._metrics = metrics
        self._max_batch, self._max_wait = max_batch, max_wait
        self._queue: queue.Queue[Job | None] = queue.Queue(max_queue)
        self._engine_lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        metrics.watch_queue(self._queue.qsize)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, job: Job) -> Future[Any]:
        """Queues a job; its future gets the answer, or the error of the engine. Raises Busy."""
        if self._closing:
            raise Busy("the server is stopping")
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            raise Busy(f"{self._queue.maxsize} requests are waiting") from None
        return job.future

    def swap(self, engine: Engine) -> Engine:
        """Replaces the engine between two batches, and returns the previous one."""
        with self._engine_lock:
            previous, self.engine = self.engine, engine
        return previous

    def close(self) -> None:
        """Answers the jobs that are queued, refuses new ones, and ends the thread."""
        self._closing = True
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    # ---- the thread

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._collect()
            # A request that was cancelled, because its client has gone, is not worth an answer.
            batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
            with self._engine_lock:
                self._answer([job for job in batch if isinstance(job, AddJob)], self._add)
                self._answer([job for job in batch if isinstance(job, QueryJob)], self._recommend)
                for job in batch:
                    if isinstance(job, CallJob):
                        self._answer([job], self._call)

    def _collect(self) -> tuple[list[Job], bool]:
        """The jobs of the next batch, and whether more may follow."""
        batch: list[Job] = []
        size, deadline = 0, 0.0
        while size < self._max_batch:
            try:
                if not batch:
                    job = self._queue.get()
                    deadline = time.monotonic() + self._max_wait
                else:
                    wait = deadline - time.monotonic()
                    job = self._queue.get(timeout=wait) if wait > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return batch, False
            batch.append(job)
            size += job.size
        return batch, True

    def _answer(self, jobs: Sequence[Any], call: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
        """Calls the engine for some jobs together, and gives them its answers or its error."""
        if not jobs:
            return
        try:
            with ANSWERING:
                answers = call(jobs)
        except (DataError, OutOfMemory) as error:
            if len(jobs) > 1:
                for job in jobs:  # the others need not fail with it, and a single one needs less memory
                    self._answer([job], call)
            elif isinstance(error, OutOfMemory):
                logger.error("%s", error)
                self._fail(jobs, error)
            else:
                jobs[0].future.set_exception(error)
        except UserError as error:
            self._fail(jobs, error)
        except Exception as error:
            logger.exception("a batch of %d requests failed", len(jobs))
            self._fail(jobs, error)
        else:
            for job, answer in zip(jobs, answers, strict=True):
                if isinstance(answer, Exception):
                    job.future.set_exception(answer)
                else:
                    job.future.set_result(answer)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        self._metrics.errors.labels(type(error).__name__).inc(len(jobs))
        for job in jobs:
            job.future.set_exception(error)

    def _add(self, jobs: Sequence[AddJob]) -> list[Any]:
        events = [event for job in jobs for event in job.events]
        self._metrics.batch_size.labels("events").observe(len(events))
        receipts = iter(self.engine.add(events))
        answers = [[next(receipts) for _ in job.events] for job in jobs]
        self._metrics.count_receipts(receipt for answer in answers for receipt in answer)
        return answers

    def _recommend(self, jobs: Sequence[QueryJob]) -> Sequence[Any]:
        self._metrics.batch_size.labels("queries").observe(len(jobs))
        return self.engine.recommend([job.query for job in jobs])

    def _call(self, jobs: Sequence[CallJob]) -> list[Any]:
        return [job.call(self.engine) for job in jobs]
