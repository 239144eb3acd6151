"""Makes the runs: each is `python -m recgrela.train` in a process of its own, one after the other.

So a run is what it would be alone, its peak of memory is its own, and what ends it does not end the others.
"""

from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from recgrela.compare.plan import LOCK, Run
from recgrela.settings.command_line import EXIT_SIGNAL, to_argv
from recgrela.settings.fields import NOTHING
from recgrela.system.errors import RunError
from recgrela.system.runtime import Stopped


class Runner:
    """Runs processes one at a time and hands stop signals on to the one in hand, which saves and ends.

    A process is in a session of its own: a terminal's Ctrl-C would reach it too, and it takes a second signal
    for the wish to end at once. A signal in between two processes counts as well.

    Only one may be at work in a folder. The lock is the process's too: it outlives this one where that is
    killed, for as long as the run goes on.

    Args:
        out: the comparison's folder, made if it is not there.

    Raises:
        RunError: the folder cannot be made or written.
    """

    def __init__(self, out: Path) -> None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._lock = (out / LOCK).open("a")  # not "w", which would touch the lock of another
        except OSError as error:
            raise RunError(f"cannot make the folder {out}, or write in it: {error.strerror}") from error
        self._signum: int | None = None
        self._pending: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Runner:
        """Raises RunError if another process makes runs in the folder."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise RunError(
                f"{Path(self._lock.name).parent}: another comparison is at work there, or a run that it "
                "left; wait for it, or end it"
            ) from error
        if threading.current_thread() is not threading.main_thread():  # Python allows no handlers there
            return self
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is not signal.SIG_IGN:  # as nohup has it
                self._previous[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def make(self, run: Run) -> str | None:
        """Make a run, or go on with it; returns why it failed, or None.

        Raises:
            Stopped: a signal arrived; the run can go on where it was.
        """
        if run.status == "new" and run.folder.path.is_dir():
            shutil.rmtree(run.folder.path)  # of a process that ended before its first checkpoint
        with tempfile.TemporaryFile() as errors:
            self._check()
            command = [sys.executable, "-m", "recgrela.train", *train_options(run)]
            self._process = subprocess.Popen(
                command, stderr=errors, start_new_session=True, pass_fds=[self._lock.fileno()]
            )
            if self._pending is not None:  # since the check
                self._process.send_signal(self._pending)
            code = self._process.wait()
            self._process = None
            self._check()
            errors.seek(0)
            text = errors.read().decode(errors="replace")
        sys.stderr.write(text)
        return None if code == 0 else describe_failure(code, text)

    def _check(self) -> None:
        if self._signum is not None:
            raise Stopped(self._signum)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        known = signal.SIGTERM if signum == signal.SIGHUP else signum  # those that training saves at
        if self._process is None:
            self._pending = known
        else:
            self._process.send_signal(known)


def train_options(run: Run) -> list[str]:
    """The options of `recgrela.train` that make a run, or go on with it.

    A run that goes on has its other settings from its folder: they are the same, or it is refused before.
    """
    values = run.config.flat()
    if run.status == "cut":
        free = {key: values[key] for key, option in run.config.options.items() if option.affects == NOTHING}
        return ["--resume", str(run.folder.path), *to_argv(free)]
    return to_argv(values)


def describe_failure(code: int, errors: str) -> str:
    """Why a process ended, in one line: its exit code, and what it wrote last."""
    if code < 0:
        hint = " (the system may have run out of memory)" if code == -signal.SIGKILL else ""
        return f"ended by {signal.Signals(-code).name}{hint}"
    if code > EXIT_SIGNAL:
        return f"stopped by {signal.Signals(code - EXIT_SIGNAL).name}; the same command goes on with it"
    lines = errors.strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
