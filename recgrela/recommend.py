"""`python -m recgrela.recommend RUN`: recommend items to users of the data, or after given histories."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from recgrela.inference.histories import Histories
from recgrela.inference.lists import read_histories, read_lines, read_list
from recgrela.inference.output import FORMATS, show_history, show_table, write_rows
from recgrela.inference.recommender import Recommender
from recgrela.settings import command_line
from recgrela.settings.command_line import Parser
from recgrela.settings.fields import MAX_THREADS, Option
from recgrela.system.console import say
from recgrela.system.errors import ConfigError
from recgrela.system.output import display_console, result_console
from recgrela.system.text import quote

OPTIONS = [
    Option("user", None, "Original id of a user; may be repeated.", many="append"),
    Option("users", None, "File of users, one original id a line; - for stdin."),
    Option(
        "items",
        None,
        "A history as original item ids, oldest first: ID,ID,...; an id with a comma is in double quotes, "
        "as in CSV.",
    ),
    Option(
        "histories",
        None,
        'File of histories as JSON lines, {"user": ID, "items": [ID, ...]} or [ID, ...]; - for stdin.',
    ),
    Option(
        "events",
        None,
        "Today's events, from which histories are taken, a path or several; by default the run's data.",
        many="any",
    ),
    Option("k", 10, "Number of recommendations per user.", kind=int, min=1),
    Option("allow", None, "File of the only items to recommend, one original id a line."),
    Option("deny", None, "File of items not to recommend, one original id a line."),
    Option("format", "table", "Format of the output.", choices=tuple(FORMATS)),
    Option("output", "-", "File of the output; - for stdout."),
    Option(
        "checkpoint", "auto", "Checkpoint; auto: that of the final table.", choices=("auto", "best", "last")
    ),
    Option("device", "auto", "Device: cpu, cuda, cuda:N, or auto for the GPU if there is one."),
    Option("threads", None, "Number of CPU threads.", kind=int, min=1, max=MAX_THREADS),
]
SOURCES = ("user", "users", "items", "histories", "all")


def command(argv: Sequence[str]) -> int:
    """Parse, recommend, print or write."""
    parser = Parser("recommend", "Recommend items with a run's model.")
    parser.add_argument("run", metavar="RUN", help="Run folder.")
    parser.add(OPTIONS)
    parser.add_argument("--all", action="store_true", help="Recommend to every user of the events.")
    parser.add_argument("--seen", action="store_true", help="Also recommend items of the history.")
    options = parser.read(argv)
    given = [name for name in SOURCES if options[name]]
    if len(given) != 1:
        raise ConfigError(f"give one of {', '.join(f'--{name}' for name in SOURCES)}")
    if options["format"] == "parquet" and options["output"] == "-":
        raise ConfigError("--format parquet needs --output FILE")
    if options["threads"]:
        import torch

        torch.set_num_threads(options["threads"])
    which = None if options["checkpoint"] == "auto" else options["checkpoint"]
    recommender = Recommender.load(
        options["run"], events=options["events"], checkpoint=which, device=options["device"]
    )
    notes = display_console(stderr=True)
    histories = _histories(recommender, given[0], options)
    if histories.skipped:
        say(notes, f"note: {histories.skipped} events of items that the model does not know are skipped")
    if given[0] == "histories" and (histories.lengths == 0).any():
        say(notes, f"note: {(histories.lengths == 0).sum()} histories without a known item are skipped")
        histories = histories.without_empty()
    allow, deny = (
        read_lines(options[name], f"--{name}") if options[name] else None for name in ("allow", "deny")
    )
    batches = recommender.iter_recommendations(histories, options["k"], not options["seen"], allow, deny)
    run = recommender.run
    assert run is not None
    rule = "including items of the history" if options["seen"] else "excluding items of the history"
    title = f"recommended by {run.folder.path.name}, {run.describe_checkpoint()}, {rule}:"
    if options["format"] == "table" and len(histories) == 1 and options["output"] == "-":
        console = result_console(is_wide=True)
        show_history(console, recommender.catalogue.items, histories)
        show_table(console, title, batches)
    else:
        if options["format"] == "table":
            say(notes, title)
        write_rows(options["output"], options["format"], batches)
    return 0


def _histories(recommender: Recommender, source: str, options: dict[str, Any]) -> Histories:
    """The histories that the options ask for."""
    if source == "all":
        return recommender.select()
    if source in ("user", "users"):
        users = options["user"] or read_lines(options["users"], "--users")
        return recommender.select(users)
    if source == "items":
        tokens = read_list(options["items"], "--items")
        if options["items"] in recommender.catalogue.index and not {*tokens} <= {
            *recommender.catalogue.index
        }:
            fix = "write it in double quotes, which the shell must not remove"
            raise ConfigError(f"--items: {quote(options['items'])} is one item with a comma; {fix}")
        # A typing error on a command line is an error, unlike an unknown item in a shop's history.
        recommender.catalogue.known_ids(tokens)
        return recommender.select(histories=[tokens])
    return recommender.select(histories=read_histories(options["histories"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command_line.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
