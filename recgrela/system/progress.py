"""Training progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from recgrela.system.console import say

PLAIN_SECONDS = 30.0  # minimum time between two plain lines within an epoch


class ProgressDisplay:
    """Shows steps, loss and speed of the current epoch, and a line for each finished epoch.

    Args:
        console: the output.
        unit: the unit of the speed, "samples" or "targets".
    """

    def __init__(self, console: Console, unit: str) -> None:
        self._console = console
        self._unit = unit
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
        self._task: TaskID | None = None
        self._label = ""
        self._steps = 0
        self._last_line = 0.0

    def __enter__(self) -> ProgressDisplay:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, label: str, steps: int, done: int) -> None:
        """Begin an epoch of `steps` steps, `done` of which are already finished."""
        self._label, self._steps, self._last_line = label, steps, time.perf_counter()
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(label, total=steps, completed=done, note="")

    def advance(self, done: int) -> None:
        """Show that `done` steps of the epoch are finished."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done)

    def show_loss(self, done: int, loss: float, rate: float) -> None:
        """Show the current loss and speed."""
        note = f"loss {loss:.4f}  {rate:,.0f} {self._unit}/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, note=note)
        elif time.perf_counter() - self._last_line > PLAIN_SECONDS:
            self._last_line = time.perf_counter()
            say(self._console, f"{self._label}  step {done}/{self._steps}  {note}")

    def finish_epoch(self, record: Mapping[str, Any], metric: str) -> None:
        """Print the line of a finished epoch, with the valid metric that chooses the best one."""
        valid, hits = record["valid"]["unmasked"], f"HR@{metric.partition('@')[2]}"
        shown = "  ".join(f"{name} {valid[name]:.4f}" for name in dict.fromkeys((hits, metric)))
        say(
            self._console,
            f"{self._label}  loss {record['loss']:.4f}  {record['targets_per_second']:,.0f} {self._unit}/s  "
            f"{record['seconds']:.1f} s  valid {shown}" + ("  best" if record["improved"] else ""),
        )
