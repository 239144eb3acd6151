"""The parts of a server, and what they do when it starts and stops."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from recgrela.serve.batching import Batcher, Job
from recgrela.serve.engine import Engine
from recgrela.serve.items import ItemSearch
from recgrela.serve.metrics import Metrics
from recgrela.serve.reload import Reloader
from recgrela.store import Store


@dataclass
class Service:
    """What the routes of the app use.

    Attributes:
        store: the users' logs.
        batcher: takes requests to the engine.
        metrics: the server's metrics.
        reloader: watches the run; None: the model never changes.
        token: the token that requests must have; None: none.
        hosts: names by which the server may be addressed; None: any.
    """

    store: Store
    batcher: Batcher
    metrics: Metrics
    reloader: Reloader | None = None
    token: str | None = None
    hosts: tuple[str, ...] | None = None
    ready: bool = field(default=False, init=False)
    started: float = field(default_factory=time.monotonic, init=False)
    _search: tuple[Engine, ItemSearch] | None = field(default=None, init=False)

    @property
    def engine(self) -> Engine:
        """The engine that serves now."""
        return self.batcher.engine

    @property
    def search(self) -> ItemSearch:
        """The search of the current model's items."""
        engine = self.engine
        if self._search is None or self._search[0] is not engine:
            self._search = engine, ItemSearch(engine.catalogue)
        return self._search[1]

    async def ask(self, job: Job) -> Any:
        """The engine's answer to a job. Raises its error, or Busy."""
        future: Future[Any] = self.batcher.submit(job)
        return await asyncio.wrap_future(future)

    def start(self) -> None:
        """Starts the threads."""
        self.batcher.start()
        if self.reloader is not None:
            self.reloader.start()
        self.ready = True

    def stop(self) -> None:
        """Answers what is queued, ends the threads and closes the store."""
        self.ready = False
        if self.reloader is not None:
            self.reloader.close()
        self.batcher.close()
        self.store.close()
