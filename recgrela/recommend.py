"""`python -m recgrela.recommend RUN --user ID | --items ID,ID`: recommend items after a history."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recgrela.evaluation.recommendation import Recommendation, recommend
from recgrela.runs.histories import token_history, user_history
from recgrela.runs.items import Items, read_items
from recgrela.runs.saved import SavedRun, load_run
from recgrela.settings import command_line
from recgrela.settings.command_line import Parser
from recgrela.settings.fields import Option
from recgrela.system.console import say
from recgrela.system.device import use_device
from recgrela.system.errors import ConfigError
from recgrela.system.files import expand_path

SHOWN = 10  # number of last items of the history to print

OPTIONS = [
    Option("user", None, "Original id of a user of the run."),
    Option("items", None, "Original item ids, oldest first: ID,ID,..."),
    Option("k", 10, "Number of recommendations.", kind=int, min=1),
    Option("data.path", None, "Path of the data if it has moved (for --user)."),
    Option("device", "auto", "Device: cpu, cuda, cuda:N, or auto for the GPU if there is one."),
]


def command(argv: Sequence[str]) -> int:
    """Parse, recommend, print."""
    parser = Parser("recommend", "Show a history and the items that a run's model recommends.")
    parser.add_argument("run", metavar="RUN", help="Run folder.")
    parser.add(OPTIONS)
    parser.add_argument("--seen", action="store_true", help="Also recommend items of the history.")
    options = parser.read(argv)
    user, listed = options["user"], options["items"]
    if (user is None) == (listed is None):
        raise ConfigError("give either --user ID or --items ID,ID,...")
    run = load_run(expand_path(options["run"], "RUN"), None, use_device(options["device"]))
    items = read_items(run.folder.items_path, run.model.n_items)
    if user is not None:
        history = user_history(run, user, options["data.path"])
    else:
        tokens = [token.strip() for token in listed.split(",") if token.strip()]
        if not tokens:
            raise ConfigError("--items: no item is given; expected ID,ID,...")
        history = token_history(items, tokens)
    length = run.config.data.history_len
    best = recommend(run.model, history, options["k"], options["seen"], length, items.retired)
    console = Console()
    _show_history(console, items, history)
    _show_best(console, run, items, best, options["seen"])
    return 0


def _show_history(console: Console, items: Items, history: Sequence[int]) -> None:
    end = f", the last {SHOWN}" if len(history) > SHOWN else ""
    say(console, f"history of {len(history)} items{end}:")
    for item in history[-SHOWN:]:
        say(console, f"  {items.label(item)}")


def _show_best(
    console: Console, run: SavedRun, items: Items, best: Sequence[Recommendation], seen: bool
) -> None:
    rule = "including items of the history" if seen else "excluding items of the history"
    say(console, f"recommended by {run.folder.path.name}, {run.describe_checkpoint()}, {rule}:")
    table = Table()
    for heading in ("rank", "score", "item", "title"):
        table.add_column(heading, justify="right" if heading in ("rank", "score") else "left")
    for rank, found in enumerate(best, 1):
        cells = (str(rank), f"{found.score:.3f}", items.tokens[found.item], items.titles[found.item] or "")
        table.add_row(*(Text(cell) for cell in cells))  # not markup: a title may contain brackets
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command_line.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
