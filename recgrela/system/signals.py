"""Stop signals, handled at safe points of a run."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Stopped(Exception):
    """A stop signal arrived and the run reached a safe point."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals:
    """Turns SIGINT and SIGTERM into `Stopped`, which `check` raises at the next safe point.

    The first signal restores the previous handlers, so a second one ends the process at once; checkpoints on
    disk are complete at any time. Outside the main thread, where Python allows no handlers, the class does
    nothing.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def received(self) -> int | None:
        """The number of the signal that has arrived, None if none has."""
        return self._received

    def check(self) -> None:
        """Raises `Stopped` if a signal has arrived."""
        if self._received is not None:
            raise Stopped(self._received)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._received = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()
