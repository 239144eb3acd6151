"""`python -m recgrela.compare`: train several models under the same conditions and write one table."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from datetime import timedelta

import torch

from recgrela.compare.folder import check_folder
from recgrela.compare.options import parse_args
from recgrela.compare.plan import make_plan
from recgrela.compare.report import write_report
from recgrela.compare.runner import make_runs
from recgrela.parallel.launch import Launch
from recgrela.parallel.processes import join
from recgrela.settings import command_line
from recgrela.system.console import say
from recgrela.system.output import display_console
from recgrela.system.signals import Stopped

EXIT_FAILED_RUN = 1


def command(argv: Sequence[str]) -> int:
    """Parse, train the models that are not trained yet, and write the table."""
    request = parse_args(argv)
    check_folder(request)
    plan = make_plan(request)
    launch = Launch.read()
    console = display_console(quiet=launch.rank > 0)
    try:
        with join(torch.device("cpu"), launch, timeout=timedelta(days=30)) as processes:
            failures = make_runs(plan, display_console(), processes)
    except Stopped as stop:
        name = signal.Signals(stop.signum).name
        finished = sum(run.status == "finished" for run in plan.runs)
        say(console, f"stopped by {name}, {finished} of {len(plan.runs)} runs finished")
        say(console, "resume with the same command")
        return command_line.EXIT_SIGNAL + stop.signum
    if launch.rank == 0:
        written = write_report(plan, failures, console)
        say(console, f"written: {', '.join(map(str, written))}")
    return EXIT_FAILED_RUN if failures else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command_line.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
