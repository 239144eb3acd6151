"""`python -m recgrela.protocols RUN`: one run's scores under several protocols, which papers do not share."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import torch
from rich.table import Table

from recgrela.runs.growth import growth_notes
from recgrela.runs.orders import OrderScores, possible_orders, score_orders
from recgrela.runs.saved import MOVED_DATA, SavedRun, load_data, load_run, moved_paths
from recgrela.settings import command_line
from recgrela.settings.command_line import Parser
from recgrela.settings.data import ORDERS, Order
from recgrela.settings.fields import MAX_THREADS, Option
from recgrela.settings.train import read_cutoffs
from recgrela.system.console import print_whole, say
from recgrela.system.device import use_device
from recgrela.system.errors import ConfigError
from recgrela.system.files import atomic_write_text, expand_path, file_to_write
from recgrela.system.output import result_console
from recgrela.system.suggest import near_miss
from recgrela.system.text import quote

MEANINGS = {
    "time": "by time, ties as in the file",
    "recbole": "by time as float32",
    "item": "by time, ties by item id",
    "file": "as in the file",
}
SEEN = {"ranked": "unmasked", "removed": "masked"}
OPTIONS = [
    Option("orders", None, "Orders of events, as time,recbole,item,file; by default all that the data have."),
    Option("cutoffs", None, "Cut-offs of the metrics, as 5,10,20; by default the run's."),
    *MOVED_DATA,
    Option("batch_size", None, "Targets per evaluation batch; by default the run's.", kind=int, min=1),
    Option("json", None, "File for all figures, MRR and popularity too."),
    Option("device", "auto", "Device: cpu, cuda, cuda:N, or auto for the GPU if there is one."),
    Option("threads", None, "Number of CPU threads.", kind=int, min=1, max=MAX_THREADS),
]


def command(argv: Sequence[str]) -> int:
    """Parse, evaluate under each order, print."""
    parser = Parser("protocols", "Evaluate one run's weights under several protocols of evaluation.")
    parser.add_argument("run", metavar="RUN", help="Run folder.")
    parser.add(OPTIONS)
    options = parser.read(argv)
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    cutoffs = None if options["cutoffs"] is None else read_cutoffs(options["cutoffs"], "--cutoffs")
    chosen = None if options["orders"] is None else read_orders(options["orders"])
    out = None if options["json"] is None else file_to_write(options["json"], "--json")
    console = result_console()
    run = load_run(expand_path(options["run"], "RUN"), None, use_device(options["device"]))
    if out is not None:
        run.folder.check_not_own(out, "--json")
    paths = moved_paths(options)
    own = load_data(run, **paths)
    batch_size = options["batch_size"] or run.config.train.eval_batch_size
    scores = score_orders(run, own, chosen or possible_orders(run), batch_size, cutoffs, **paths)
    say(console, f"{run.folder.path.name}, {run.describe_checkpoint()}, test split")
    print_whole(console, table(scores))
    for note in [*notes(run, scores), *growth_notes(run.folder)]:
        say(console, note)
    if out is not None:
        atomic_write_text(out, json.dumps([score.as_dict() for score in scores], indent=2) + "\n")
        say(console, f"written: {out}")
    return 0


def read_orders(text: str) -> tuple[Order, ...]:
    """The orders in a text such as "time,file". Raises ConfigError for another text."""
    known = {str(order): order for order in ORDERS}
    words = list(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in words:
        if word not in known:
            raise ConfigError(
                f"--orders: {quote(word)} is not one of {', '.join(known)}{near_miss(word, known)}"
            )
    return tuple(known[word] for word in words)


def table(scores: Sequence[OrderScores]) -> Table:
    """Two rows for each order: all items ranked, and seen items removed."""
    result = Table()
    for heading in ("order of events", "seen items"):
        result.add_column(heading)
    names = [name for name in scores[0].ranking.values if not name.startswith("MRR")]
    for name in names:
        result.add_column(name, justify="right")
    for score in scores:
        for seen, key in SEEN.items():
            values = score.ranking.values if key == "unmasked" else score.ranking.masked
            cells = [interval(values[name], score.intervals[key][name]) for name in names]
            result.add_row(f"{score.order}: {MEANINGS[score.order]}", seen, *cells)
    return result


def interval(value: float, bounds: tuple[float, float]) -> str:
    """A value and its interval: ".2112 [.2031, .2190]"."""
    low, high = (f"{bound:.4f}".removeprefix("0") for bound in bounds)
    return f"{value:.4f}".removeprefix("0") + f" [{low}, {high}]"


def notes(run: SavedRun, scores: Sequence[OrderScores]) -> list[str]:
    """Notes on the intervals, and on the targets that the run has learned."""
    found = ["in brackets: 95 % bootstrap intervals over users"]
    if run.config.data.split == "time" and run.config.data.order != "file":
        found.append("a split by time has no order of the file")
    learned = [f"{100 * score.trained:.0f} % under {score.order}" for score in scores if score.trained]
    if learned:
        found.append(
            f"the run was trained in the order {run.config.data.order}: the test targets are among its "
            f"training events for {', '.join(learned)}"
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command_line.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
