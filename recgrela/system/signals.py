"""Stop signals, handled at safe points of a run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection
from types import FrameType, TracebackType
from typing import Any


class Stopped(Exception):
    """A stop signal arrived and the run reached a safe point."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def stop_signals() -> list[signal.Signals]:
    """SIGINT, SIGTERM and SIGHUP, without those that the process ignores, as nohup makes it ignore SIGHUP."""
    known = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [signum for signum in known if signal.getsignal(signum) is not signal.SIG_IGN]


class StopSignals:
    """Turns SIGINT, SIGTERM and SIGHUP into `Stopped`, which `check` raises at the next safe point.

    The first signal restores the previous handlers, so a second one ends the process at once; checkpoints on
    disk are complete at any time. SIGHUP never does: a terminal that closes sends it twice, itself and
    through its shell. Signals that the process ignores remain ignored. Outside the main thread, where Python
    allows no handlers, the class does nothing.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in stop_signals():
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
        if self._received is None:
            self._received = signum
            # torchrun sends SIGTERM to processes that may have received it already, with all of their job.
            kept = {signal.SIGHUP, signal.SIGTERM} if "TORCHELASTIC_RUN_ID" in os.environ else {signal.SIGHUP}
            self._restore(except_for=kept)

    def _restore(self, except_for: Collection[int] = ()) -> None:
        for signum in [signum for signum in self._previous if signum not in except_for]:
            signal.signal(signum, self._previous.pop(signum))
