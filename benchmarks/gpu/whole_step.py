"""The step that measures whole training steps: ours, plain PyTorch and torch.compile of it.

Our rows come first, in this process. Peers run in a process that is killed when its time is over.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.gpu.step import Outcome, Settings
from benchmarks.gpu.step_rows import COMPILED, PLAIN, WITHOUT_GRAPHS, Amount, Record, Row, measure_row
from benchmarks.steps import DATA, SETTINGS
from benchmarks.timing import OURS
from recgrela.data import DataConfig

NO_TIME = "no time left"
PLAIN_SECONDS = 40.0  # limit of a row of plain PyTorch, which does not compile
AMOUNT = Amount()
SHORT = {OURS: "ours", WITHOUT_GRAPHS: "without graphs", PLAIN: "plain", COMPILED: "compiled"}


def rows(quick: bool) -> list[Row]:
    """The most important rows first; each peer after all of ours."""
    settings = list(SETTINGS.values())
    if quick:
        settings = [replace(s, batch_size=s.batch_size // 8) for s in settings[:2]]
    ours = [Row(setting, way) for setting in settings for way in (OURS, WITHOUT_GRAPHS)]
    peers = [Row(setting, PLAIN, 20.0) for setting in settings[:4]]
    compiled = [] if quick else [Row(setting, COMPILED, 60.0) for setting in settings[:2]]
    return ours + peers + compiled


def not_run(row: Row, why: str) -> Record:
    return {"setting": row.setting.name, "way": row.way, "status": "not run", "fault": why}


def serve(connection: Connection, device: str, n: Amount, data: DataConfig) -> None:
    """Answers rows with their records until the other side closes."""
    while True:
        try:
            row = connection.recv()
        except EOFError:
            return
        connection.send(measure_row(row, device, n, data))


class PeerProcess:
    """The process that measures peers; it starts with the first row, and again after it was killed."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.process: Any = None

    def measure(self, row: Row, seconds: float) -> Record:
        """The record of a row, or a note that it did not end."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=serve, args=(theirs, *self.args))
            self.process.start()
            theirs.close()
        why = f"took more than {seconds:.0f} s"
        try:
            self.connection.send(row)
            if self.connection.poll(seconds):
                return self.connection.recv()
        except (EOFError, ConnectionError):
            why = "its process ended"
        self.close()
        return not_run(row, why)

    def close(self) -> None:
        if self.process is not None:
            self.connection.close()
            self.process.kill()
            self.process.join(10)
            self.process = None


def run_rows(
    chosen: Sequence[Row],
    device: str,
    seconds: float,
    save: Callable[[Record], None],
    n: Amount = AMOUNT,
    data: DataConfig = DATA,
) -> Record:
    """Measures rows in order until no time is left.

    Args:
        save: called with the details after each row.

    Returns:
        {"rows": [records]}; rows that were not started have the status "not run".
    """
    deadline = time.monotonic() + seconds
    details: Record = {"rows": []}
    with closing(PeerProcess(device, n, data)) as peers:
        for row in chosen:
            left = deadline - time.monotonic()
            if left < row.seconds:
                record = not_run(row, NO_TIME)
            elif row.way in (OURS, WITHOUT_GRAPHS):
                record = measure_row(row, device, n, data)
            else:
                record = peers.measure(row, left if row.way == COMPILED else min(left, PLAIN_SECONDS))
            details["rows"].append(record)
            print(record["setting"], record["way"], record.get("ms", record.get("fault")), flush=True)
            save(details)
    return details


def judge(details: Record) -> tuple[str, str]:
    """Status and summary: milliseconds a step. Only our rows can fail the step."""
    ours = [row for row in details["rows"] if row["way"] in (OURS, WITHOUT_GRAPHS)]
    parts = []
    for name in dict.fromkeys(row["setting"] for row in ours):
        found = [row for row in details["rows"] if row["setting"] == name]
        times = [f"{SHORT[row['way']]} {row['ms']:.2f}" for row in found if "ms" in row]
        faults = [f"{SHORT[row['way']]}: {row['fault']}" for row in found if row in ours and "fault" in row]
        parts.append(f"{name}: {', '.join(times + faults)}")
    passed = any(row["status"] == "passed" for row in ours)
    failed = any(row["status"] == "failed" for row in ours)
    return ("passed" if passed and not failed else "failed"), "ms a step: " + "; ".join(parts)


def whole_step(settings: Settings) -> Outcome:
    """Measures whole training steps and their peers."""
    details = run_rows(rows(settings.quick), "cuda", settings.limit - 10, settings.save)
    return (*judge(details), details)
