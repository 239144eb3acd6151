"""`python -m recgrela.train`: train a model, evaluate it and leave a run folder."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence

from rich.console import Console

from recgrela.models import CONFIGS
from recgrela.runs.folder import RunFolder
from recgrela.runs.saved import describe_state
from recgrela.settings import command_line
from recgrela.settings.run import find_resumed, read_config, read_resumed, read_run
from recgrela.system.console import say
from recgrela.system.files import given_path
from recgrela.training.trainer import train


def command(argv: Sequence[str]) -> int:
    """Parse, train, and say how to go on."""
    resumed = find_resumed(argv)
    if resumed is None:
        config, path = read_run(argv, CONFIGS), None
    else:
        folder = RunFolder.open(given_path(resumed, "--resume"))
        config, path = read_resumed(argv, read_config(folder.config_path, CONFIGS)), folder.path
    console = Console()
    result = train(config, path, console)
    path = result.folder.path
    if result.signum is not None:
        name, where = signal.Signals(result.signum).name, describe_state(result.state)
        say(console, f"stopped by {name} {where}")
        say(console, f"go on with: python -m recgrela.train --resume {shlex.quote(str(path))}")
        return command_line.EXIT_SIGNAL + result.signum
    say(console, f"run folder {path}: python -m recgrela.evaluate {shlex.quote(str(path))} repeats the table")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command_line.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
