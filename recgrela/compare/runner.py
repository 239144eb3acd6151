"""Trains the models of a comparison, one run at a time, each in a process `python -m recgrela.train`.

Separate processes keep runs independent: each has its own peak memory, and a failure does not end the others.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console

from recgrela.compare.folder import LOCK, claim_folder
from recgrela.compare.plan import Plan, Run
from recgrela.parallel.launch import Launch, without_launch
from recgrela.parallel.processes import Processes
from recgrela.runs.lock import owned
from recgrela.settings.command_line import EXIT_SIGNAL, to_argv
from recgrela.settings.fields import NOTHING
from recgrela.system.console import say
from recgrela.system.errors import RunError
from recgrela.system.output import tell
from recgrela.system.signals import Stopped, stop_signals


def make_runs(plan: Plan, console: Console, processes: Processes | None = None) -> dict[tuple[str, int], str]:
    """Train the runs that are not finished.

    Args:
        plan: the runs.
        console: the output.
        processes: the processes that share the runs, each of which trains one run at a time; None: only this
            one.

    Returns:
        The reasons of failed runs, by label and seed; those of all processes.

    Raises:
        RunError: the folder has other files, or another comparison is running there.
        Stopped: a signal arrived; the current run can be resumed.
    """
    processes, runs, failures = processes or Processes(), plan.runs, {}
    with Runner(plan.request.out, processes) as runner:
        processes.on_first(lambda: claim_folder(plan))
        take_number = processes.counter()
        while (number := take_number()) < len(runs):
            run = runs[number]
            name = f"{run.label}, seed {run.seed} ({number + 1} of {len(runs)})"
            if run.status == "finished":
                say(console, f"{name}: already finished")
                continue
            say(console, f"{name}: {run.folder.path}")
            try:
                failure = runner.make(run)
            except RunError as error:  # such as a folder that another process writes
                failure = str(error)
            if failure is not None:
                say(console, f"{name}: failed: {failure}")
                failures[run.label, run.seed] = failure
        listed = json.dumps([[label, seed, reason] for (label, seed), reason in failures.items()])
        everywhere = [json.loads(text) for text in processes.gather_text(listed)]
    return {(label, seed): reason for part in everywhere for label, seed, reason in part}


class Runner:
    """Runs training processes and forwards stop signals to the current one, which saves and ends.

    Each process has its own session. In the terminal's session, Ctrl-C would reach it twice, directly and
    forwarded, and a second signal ends training without saving. A signal between two processes stops the
    comparison too.

    A lock on the folder admits one comparison at a time. Training processes inherit the lock, so it lasts
    until the current run ends even if the comparison is killed.

    Several processes share the folder; the first one holds the lock for all of them.

    Args:
        out: the comparison's folder, created if missing.
        processes: the processes that train runs in the folder; None: only this one.

    Raises:
        RunError: the folder cannot be created or written.
    """

    def __init__(self, out: Path, processes: Processes | None = None) -> None:
        self._processes = processes or Processes()
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._lock = (out / LOCK).open("a")  # "w" would modify the lock file of another comparison
        except OSError as error:
            raise RunError(f"cannot create or write the folder {out}: {error.strerror}") from error
        self._signum: int | None = None
        self._pending: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Runner:
        """Raises RunError if another process holds the folder's lock."""
        self._processes.on_first(self._take_lock)
        if threading.current_thread() is not threading.main_thread():  # Python allows no handlers there
            return self
        for signum in stop_signals():
            self._previous[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise RunError(
                f"{Path(self._lock.name).parent}: another comparison, or a run that it left, is using the "
                "folder; wait for it, or stop it"
            ) from error

    def make(self, run: Run) -> str | None:
        """Start or resume a run; returns the reason if it failed, else None.

        Raises:
            Stopped: a signal arrived; the run can be resumed.
        """
        if run.status == "new" and run.folder.path.is_dir():
            with owned(run.folder.path):
                if run.status == "new":  # the previous owner may just have written a checkpoint
                    shutil.rmtree(run.folder.path)  # left by a process that ended before its first one
        with tempfile.TemporaryFile() as errors:
            self._check()
            command = [sys.executable, "-m", "recgrela.train", *train_options(run)]
            self._process = subprocess.Popen(
                command,
                stderr=errors,
                start_new_session=True,
                pass_fds=[self._lock.fileno()],
                env=child_environment(os.environ, self._processes.launch),
            )
            if self._pending is not None:  # a signal that arrived after the check
                self._process.send_signal(self._pending)
            code = self._process.wait()
            self._process = None
            self._check()
            errors.seek(0)
            text = errors.read().decode(errors="replace")
        if text:
            tell(text.rstrip("\n"))
        return None if code == 0 else describe_failure(code, text)

    def _check(self) -> None:
        if self._signum is not None:
            raise Stopped(self._signum)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        if self._process is None:
            self._pending = signum
        else:
            self._process.send_signal(signum)


def child_environment(environ: Mapping[str, str], launch: Launch) -> dict[str, str]:
    """The environment of a training process: it is alone, and uses the GPU of the process that starts it."""
    child = without_launch(environ)
    if launch.local_world > 1:
        visible = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        if not visible:
            child["CUDA_VISIBLE_DEVICES"] = str(launch.local_rank)
        elif launch.local_rank < len(visible):
            child["CUDA_VISIBLE_DEVICES"] = visible[launch.local_rank]
    return child


def train_options(run: Run) -> list[str]:
    """The options of `recgrela.train` that start or resume a run.

    A resumed run takes its other settings from its folder, where `claim_folder` has checked them.
    """
    values = run.config.flat()
    if run.status == "interrupted":
        free = {key: values[key] for key, option in run.config.options.items() if option.affects == NOTHING}
        return ["--resume", str(run.folder.path), *to_argv(free)]
    return to_argv(values)


def describe_failure(code: int, errors: str) -> str:
    """The reason why a process ended, in one line.

    Args:
        code: the exit code.
        errors: the text that the process wrote to stderr.
    """
    if code < 0:
        hint = " (the system may have run out of memory)" if code == -signal.SIGKILL else ""
        return f"ended by {signal.Signals(-code).name}{hint}"
    if code > EXIT_SIGNAL:
        return f"stopped by {signal.Signals(code - EXIT_SIGNAL).name}; the same command resumes it"
    lines = errors.strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
