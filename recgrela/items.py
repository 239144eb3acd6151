"""`python -m recgrela.items RUN --out NEW [--add FILE] [--retire FILE]`: change the catalogue of a run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import get_args

from recgrela.data.item_file import read_item_file
from recgrela.runs.growth import WORDS, Change, NewRows, grow
from recgrela.runs.saved import load_run
from recgrela.settings import command_line
from recgrela.settings.command_line import Parser
from recgrela.settings.fields import Option
from recgrela.system.console import say
from recgrela.system.device import use_device
from recgrela.system.errors import ConfigError
from recgrela.system.files import expand_path
from recgrela.system.out_of_memory import MemoryPhase
from recgrela.system.output import display_console

OPTIONS = [
    Option("out", None, "Folder of the new run, which must not exist."),
    Option("add", None, "CSV, Parquet or JSON lines file of new items: item_id, title, vector."),
    Option("retire", None, "File of items that are never recommended from now on: item_id."),
    Option("restore", None, "File of retired items that are recommended again: item_id."),
    Option(
        "init",
        "titles",
        "First rows of new items: mean of items with similar titles, mean of all, or vectors of the file.",
        choices=get_args(NewRows),
    ),
    Option(
        "checkpoint",
        "auto",
        "Checkpoint to change; auto: the one of the run's final table.",
        choices=("auto", "best", "last"),
    ),
]


def command(argv: Sequence[str]) -> int:
    """Parse, make the new run, print."""
    parser = Parser("items", "Make a run with the weights of RUN and items added or retired.")
    parser.add_argument("run", metavar="RUN", help="Run folder; it is not changed.")
    parser.add(OPTIONS)
    options = parser.read(argv)
    if options["out"] is None:
        raise ConfigError("--out: give the folder of the new run")
    paths = {key: options[key] for key in ("add", "retire", "restore") if options[key] is not None}
    if not paths:
        raise ConfigError("give at least one of --add FILE, --retire FILE and --restore FILE")
    which = None if options["checkpoint"] == "auto" else options["checkpoint"]
    run = load_run(expand_path(options["run"], "RUN"), which, use_device("cpu"))
    files = {key: read_item_file(path) for key, path in paths.items()}
    change = Change(**files, new_rows=options["init"])
    with MemoryPhase("changing the items", "change fewer items at a time, or give more memory"):
        folder, items = grow(run, expand_path(options["out"], "--out"), change)
    console = display_console()
    say(console, f"run folder {folder.path}, from {run.folder.path}, {run.describe_checkpoint()}")
    for key, done in (("add", "added"), ("retire", "retired"), ("restore", "restored")):
        if key in files:
            rows = f"; first rows: {WORDS[options['init']]}" if key == "add" else ""
            say(console, f"{done} {len(files[key].tokens):,} items{rows}")
    retired, path = int(items.retired.sum()), shlex.quote(str(folder.path))
    say(console, f"{len(items.tokens):,} items with the padding id, {retired:,} of them retired")
    say(console, f"train on new data with: python -m recgrela.train --init {path} --data.path DATA")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command_line.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
