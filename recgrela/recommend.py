"""`python -m recgrela.recommend RUN --user TOKEN | --items TOKEN,TOKEN`: the next items for a history."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recgrela.models import SequenceModel
from recgrela.runs.folder import Items
from recgrela.runs.saved import SavedRun, load_data, load_run
from recgrela.settings import command_line
from recgrela.settings.command_line import Parser
from recgrela.settings.fields import Option
from recgrela.system.console import say
from recgrela.system.errors import ConfigError, DataError
from recgrela.system.files import given_path
from recgrela.system.runtime import pick_device
from recgrela.system.suggest import near_miss

TAIL = 10  # items of the history shown


@dataclass(frozen=True)
class Recommendation:
    """One item of a top k."""

    item: int
    score: float


@torch.no_grad()
def recommend(
    model: SequenceModel, history: Sequence[int], k: int = 10, seen: bool = False, max_len: int | None = None
) -> list[Recommendation]:
    """The k items with the highest scores after a history; of equal scores the lower id first.

    Args:
        model: in eval mode.
        history: item ids, oldest first. Not empty.
        k: how many; fewer come back where the catalogue has fewer.
        seen: whether items of the history may be among them.
        max_len: so many of the last items are used; None: `model.max_len`.

    Returns:
        Up to k items, best first; never padding.
    """
    device = next(model.parameters()).device
    items = torch.tensor(history[-(max_len or model.max_len) :], dtype=torch.int64, device=device)
    lengths = torch.tensor([0, len(items)], device=device)
    scores = model.score_packed(items, lengths, len(items))[0]
    scores[0] = -torch.inf
    if not seen:
        scores[torch.tensor(history, device=device)] = -torch.inf
    ordered = scores.sort(descending=True, stable=True)
    values, ids = ordered.values[:k].tolist(), ordered.indices[:k].tolist()
    return [
        Recommendation(item, score) for item, score in zip(ids, values, strict=True) if score > float("-inf")
    ]


def user_history(run: SavedRun, user: str, data_path: str | None = None) -> list[int]:
    """All of a user's item ids, read from the run's data.

    Raises:
        DataError: the user is unknown; the line has a near miss.
    """
    data = load_data(run, data_path)
    try:
        row = data.user_row(user)
    except DataError as error:
        raise DataError(f"{error}{near_miss(user, data.user_ids)}") from error
    return data.items[data.offsets[row] : data.offsets[row + 1]].tolist()


def token_history(items: Items, tokens: Sequence[str]) -> list[int]:
    """Original item ids -> item ids.

    Raises:
        DataError: an item is unknown; the line has a near miss, by title too.
    """
    known = {token: row for row, token in enumerate(items.tokens) if row > 0}
    by_title = {title: items.tokens[row] for row, title in enumerate(items.titles) if title}
    for token in tokens:
        if token in by_title and token not in known:
            raise DataError(f"item {token!r} is a title; its id is {by_title[token]!r}")
        if token not in known:
            raise DataError(
                f"item {token!r} is not among the run's {len(known)} items{near_miss(token, known)}"
            )
    return [known[token] for token in tokens]


def command(argv: Sequence[str]) -> int:
    """Parse, recommend, print."""
    parser = Parser("recommend", "Show a history and the items that a run's model recommends.")
    parser.add_argument("run", metavar="RUN", help="Run folder.")
    parser.add(
        [
            Option("user", None, "Original id of a user of the run."),
            Option("items", None, "Original item ids, oldest first: ID,ID,..."),
            Option("k", 10, "Number of recommendations.", kind=int, min=1),
            Option("data.path", None, "Path of the data if it has moved (for --user)."),
            Option("device", "auto", "Device: cpu, cuda, cuda:N, or auto for the GPU if there is one."),
        ]
    )
    parser.add_argument("--seen", action="store_true", help="Also recommend items of the history.")
    options = parser.read(argv)
    user, tokens = options["user"], options["items"]
    if (user is None) == (tokens is None):
        raise ConfigError("give either --user TOKEN or --items TOKEN,TOKEN,...")
    run = load_run(given_path(options["run"], "RUN"), None, pick_device(options["device"]))
    items = run.folder.read_items(run.model.n_items)
    if user is not None:
        history = user_history(run, user, options["data.path"])
    else:
        tokens = [token.strip() for token in tokens.split(",") if token.strip()]
        if not tokens:
            raise ConfigError("--items: there is no item")
        history = token_history(items, tokens)
    console = Console()
    say(console, f"history of {len(history)} items{', its end' if len(history) > TAIL else ''}:")
    for item in history[-TAIL:]:
        say(console, f"  {_label(items, item)}")
    rule = "items of the history included" if options["seen"] else "items of the history left out"
    say(console, f"next, by {run.folder.path.name}, {run.describe_checkpoint()}, {rule}:")
    table = Table()
    for heading in ("rank", "score", "item", "title"):
        table.add_column(heading, justify="right" if heading in ("rank", "score") else "left")
    history_len = run.config.data.history_len
    best = recommend(run.model, history, options["k"], options["seen"], history_len)
    for rank, found in enumerate(best, 1):
        cells = (str(rank), f"{found.score:.3f}", items.tokens[found.item], items.titles[found.item] or "")
        table.add_row(*(Text(cell) for cell in cells))  # a title may hold what rich takes for markup
    console.print(table)
    return 0


def _label(items: Items, item: int) -> str:
    title = items.titles[item]
    return items.tokens[item] if title is None else f"{items.tokens[item]}  {title}"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command_line.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
