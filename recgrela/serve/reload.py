"""Takes over new checkpoints of a run while the server answers."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from recgrela.inference.recommender import Recommender
from recgrela.nn.state import PackedDtype
from recgrela.runs.folder import CheckpointName, RunFolder
from recgrela.serve.batching import Batcher
from recgrela.serve.engine import Engine
from recgrela.serve.metrics import Metrics
from recgrela.store import Store
from recgrela.system.errors import UserError

logger = logging.getLogger(__name__)

Identity = tuple[tuple[str, int, int, int] | None, ...]


@dataclass(frozen=True)
class Source:
    """Where models are loaded from, and how.

    Attributes:
        run: the run folder.
        checkpoint: "best" or "last"; None: the one of the run's final table.
        device: "cpu", "cuda", "cuda:N" or "auto".
        precision: of the search for the best items; see `Recommender`.
        state_dtype: format of stored states; see `ModelState.pack`.
    """

    run: Path
    checkpoint: CheckpointName | None = None
    device: str = "auto"
    precision: str = "float32"
    state_dtype: PackedDtype = "float32"

    def load(self, store: Store) -> Engine:
        """An engine with the run's current model. Raises UserError if it cannot be loaded."""
        recommender = Recommender.load(
            self.run, checkpoint=self.checkpoint, device=self.device, precision=self.precision
        )
        engine = Engine(recommender, store, self.state_dtype)
        recommender.step.warm_up()  # the first requests must not wait for it
        return engine

    def identity(self) -> Identity:
        """What changes when a file that `load` reads is replaced. Raises UserError without a checkpoint."""
        folder = RunFolder.open(self.run)
        checkpoint = folder.find_checkpoint(self.checkpoint)
        return tuple(
            map(_identity, (checkpoint, folder.items_path, folder.config_path, folder.protocol_path))
        )


def _identity(path: Path) -> tuple[str, int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return path.name, found.st_ino, found.st_size, found.st_mtime_ns


def checkpoint_name(engine: Engine) -> str:
    """The name and progress of an engine's checkpoint."""
    run = engine.recommender.run
    assert run is not None
    return run.describe_checkpoint()


class _Stopped(Exception):
    """The server is stopping."""


class Reloader:
    """A thread that watches the files of a run.

    It loads a new checkpoint, computes the states of all users with it while the previous model answers, and
    then replaces the model. Events that arrive meanwhile are added to the new states by the first request for
    their user. A checkpoint that cannot be used is reported, and the previous model stays.

    Args:
        source: where models are loaded from.
        identity: `source.identity()` from before the model that serves was loaded.
        batcher: has the engine that serves.
        store: the store of all engines.
        metrics: counts checkpoints by outcome.
        interval: seconds between two looks at the files; 0: only `reload` looks.
    """

    def __init__(
        self,
        source: Source,
        identity: Identity | None,
        batcher: Batcher,
        store: Store,
        metrics: Metrics,
        interval: float,
    ) -> None:
        self._source = source
        self._identity = self._looked = identity  # of the last load, and of the last look
        self._batcher, self._store, self._metrics = batcher, store, metrics
        self._interval = interval
        self._wake, self._stopping, self._forced = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def reload(self) -> None:
        """Loads the run's checkpoint now, even if the files seem unchanged. Returns at once."""
        self._forced.set()
        self._wake.set()

    def close(self) -> None:
        """Ends the thread; a model that it is preparing is dropped."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self._interval or None)
            self._wake.clear()
            if not self._stopping.is_set():
                self.check()

    def check(self) -> None:
        """Takes the run's checkpoint over if it is new, and the last look has found the same files.

        So a file that is being copied is not read before it is complete.
        """
        is_forced = self._forced.is_set()
        self._forced.clear()
        fault: UserError | None = None
        identity: Identity = ()
        try:
            identity = self._source.identity()
        except UserError as error:
            fault = error
        is_settled, self._looked = identity == self._looked, identity
        if not is_forced and (identity == self._identity or not is_settled):
            return
        self._identity = identity  # a checkpoint that is refused is not tried again
        try:
            if fault is not None:
                raise fault
            engine = self._source.load(self._store)
        except Exception as error:
            self._report("refused", "the new checkpoint is refused, the previous one serves on", error)
            return
        try:
            self._take(engine)
        except _Stopped:
            return
        except Exception as error:
            self._identity = None  # try again after the next interval
            self._report("failed", "the new checkpoint is not taken over yet", error)

    def _report(self, outcome: str, message: str, error: Exception) -> None:
        self._metrics.reloads.labels(outcome).inc()
        logger.error("%s: %s", message, error, exc_info=not isinstance(error, UserError))

    def _take(self, engine: Engine) -> None:
        current = self._batcher.engine
        name = checkpoint_name(engine)
        if engine.key == current.key:
            # The weights are the same, but titles or retired items may have changed.
            self._batcher.swap(engine)
            self._metrics.set_model(engine.key, name)
            self._metrics.reloads.labels("unchanged").inc()
            logger.info("%s has the same weights", name)
            return
        logger.info("loading states of %s", name)
        users = engine.rebuild(self._progress)
        self._batcher.swap(engine)
        self._metrics.set_model(engine.key, name)
        self._metrics.reloads.labels("taken").inc()
        logger.info("%s serves now, with states of %d users", name, users)
        self._store.drop_states(current.key)

    def _progress(self, done: int) -> None:
        if self._stopping.is_set():
            raise _Stopped
        # Requests of the model that serves go first.
        self._stopping.wait(0.001)
