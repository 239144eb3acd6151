"""`python -m recgrela.evaluate RUN`: repeat a run's table from its checkpoint and its data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

import torch
from rich.console import Console

from recgrela.runs.report import show_rankings
from recgrela.runs.saved import Split, evaluate, load_data, load_run
from recgrela.settings import cli
from recgrela.system.console import say
from recgrela.system.files import given_path
from recgrela.system.runtime import pick_device


def command(argv: Sequence[str]) -> int:
    """Parse, evaluate, print."""
    parser = cli.make_parser("evaluate", "Repeat a run's table, with seen items ranked and removed.")
    parser.add_argument("run", help="Run folder.")
    parser.add_argument("--split", type=Literal["both", "valid", "test"], default="both", help="Which split.")
    parser.add_argument(
        "--checkpoint",
        type=Literal["auto", "best", "last"],
        default="auto",
        help="Which weights; auto takes those of the run's final table.",
    )
    parser.add_argument("--data.path", type=str | None, default=None, help="Where the data is now.")
    parser.add_argument("--batch_size", type=int | None, default=None, help="Users ranked at a time.")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N.")
    parser.add_argument("--threads", type=int | None, default=None, help="CPU threads.")
    types_of = {
        "split": Literal["both", "valid", "test"],
        "checkpoint": Literal["auto", "best", "last"],
        "batch_size": int,
        "threads": int,
    }
    options = cli.parse(parser, argv, types_of)
    cli.check_counts(options, "batch_size", "threads")
    if options.threads:
        torch.set_num_threads(options.threads)
    which = None if options.checkpoint == "auto" else options.checkpoint
    run = load_run(given_path(options.run, "RUN"), which, pick_device(options.device))
    data = load_data(run, options.data.path)
    splits: tuple[Split, ...] = ("valid", "test") if options.split == "both" else (options.split,)
    rankings = evaluate(run, data, splits, options.batch_size or run.config.train.eval_batch_size)
    console = Console()
    show_rankings(console, rankings, f"{run.folder.path.name}, {run.describe_checkpoint()}")
    say(console, f"data {data.description['source']}, sha256 {data.sha256[:16]}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
