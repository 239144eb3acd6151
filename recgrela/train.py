"""`python -m recgrela.train`: train a model, evaluate it and leave a run folder."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from recgrela.runs.report import (
    say,
)
from recgrela.runs.saved import describe_state
from recgrela.settings import cli
from recgrela.settings.options import parse_args
from recgrela.training.trainer import train

if TYPE_CHECKING:
    pass


def command(argv: Sequence[str]) -> int:
    """Parse, train, and say how to go on."""
    request = parse_args(argv)
    console = Console()
    result = train(request.config, request.resume, console)
    path = result.folder.path
    if result.signum is not None:
        name, where = signal.Signals(result.signum).name, describe_state(result.state)
        say(console, f"stopped by {name} {where}")
        say(console, f"go on with: python -m recgrela.train --resume {shlex.quote(str(path))}")
        return cli.EXIT_SIGNAL + result.signum
    say(console, f"run folder {path}: python -m recgrela.evaluate {shlex.quote(str(path))} repeats the table")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
