"""When to stop or to save: several processes must do it after the same step."""

from __future__ import annotations

import time

from recgrela.parallel.processes import Processes
from recgrela.system.signals import Stopped, StopSignals

_SECONDS = 0.5  # between two exchanges; torchrun kills a process 30 seconds after SIGTERM


class Agreement:
    """Decides when a run stops because of a signal, and when a checkpoint is due.

    Several processes exchange what they know about every half second, after the same step: a signal that
    reaches one of them stops all.

    Args:
        processes: the processes of the run.
        signals: the signals that this process has received.
        save_seconds: seconds between checkpoints.
    """

    def __init__(self, processes: Processes, signals: StopSignals, save_seconds: float) -> None:
        self._processes, self._signals, self._save_seconds = processes, signals, save_seconds
        self._last_save = self._last_exchange = time.perf_counter()
        self._polls, self._interval = 0, 1
        self.save_is_due = False

    def poll(self) -> None:
        """Called by all processes after each step or batch.

        Raises:
            Stopped: a signal has arrived.
        """
        now = time.perf_counter()
        save_is_due = now - self._last_save > self._save_seconds
        if self._processes.is_alone:
            self.save_is_due = save_is_due
            self._signals.check()
            return
        self._polls += 1
        if self._polls < self._interval:
            return
        pace = (now - self._last_exchange) / self._polls
        interval = max(1, min(int(_SECONDS / max(pace, 1e-6)), 2 * self._polls))
        signum, due, negated = self._processes.max(self._signals.received or 0, save_is_due, -interval)
        self.save_is_due, self._interval = bool(due), -negated
        self._polls, self._last_exchange = 0, now
        if signum:
            raise Stopped(signum)

    def saved(self) -> None:
        """Notes that a checkpoint was written."""
        self._last_save, self.save_is_due = time.perf_counter(), False
