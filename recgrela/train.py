"""`python -m recgrela.train`: train a model, evaluate it and write a run folder."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence

from recgrela.models import CONFIGS
from recgrela.parallel.launch import Launch
from recgrela.runs.folder import RunFolder
from recgrela.settings import command_line
from recgrela.settings.run import (
    find_init,
    find_resumed,
    read_config,
    read_resumed,
    read_run,
)
from recgrela.system.console import say
from recgrela.system.files import expand_path
from recgrela.system.output import display_console
from recgrela.training.trainer import train
from recgrela.training.warm_start import Start


def command(argv: Sequence[str]) -> int:
    """Parse, train, and print how to evaluate or resume the run."""
    launch = Launch.read()
    console = display_console(quiet=launch.rank > 0)
    init, resumed = find_init(argv), find_resumed(argv)
    if init is not None:
        start = Start(RunFolder.open(expand_path(init[0], "--init")).path, init[1])
        result = train(read_run(argv, CONFIGS, RunFolder(start.run).config_path), None, console, start)
    elif resumed is None:
        result = train(read_run(argv, CONFIGS), None, console)
    else:
        folder = RunFolder.open(expand_path(resumed, "--resume"))
        config = read_resumed(argv, read_config(folder.config_path, CONFIGS))
        result = train(config, folder, console)
    path = shlex.quote(str(result.folder.path))
    if result.signum is not None:
        say(console, f"stopped by {signal.Signals(result.signum).name} {result.state.describe()}")
        say(console, f"resume with: python -m recgrela.train --resume {path}")
        return command_line.EXIT_SIGNAL + result.signum
    say(console, f"repeat the table with: python -m recgrela.evaluate {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command_line.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
