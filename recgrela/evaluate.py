"""`python -m recgrela.evaluate RUN`: recompute a run's table from its checkpoint and data."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import torch

from recgrela.parallel.launch import Launch
from recgrela.parallel.processes import join
from recgrela.runs.growth import growth_notes
from recgrela.runs.per_user import per_user_path, write_per_user
from recgrela.runs.saved import MOVED_DATA, Split, evaluate, load_data, load_run, moved_paths
from recgrela.runs.tables import show_rankings
from recgrela.settings import command_line
from recgrela.settings.command_line import Parser
from recgrela.settings.fields import MAX_THREADS, Option
from recgrela.settings.train import read_cutoffs
from recgrela.system.console import say
from recgrela.system.device import use_device
from recgrela.system.errors import RunError
from recgrela.system.files import expand_path
from recgrela.system.output import result_console

OPTIONS = [
    Option("split", "both", "Splits to evaluate.", choices=("both", "valid", "test")),
    Option(
        "checkpoint",
        "auto",
        "Checkpoint to evaluate; auto: the one of the run's final table.",
        choices=("auto", "best", "last"),
    ),
    *MOVED_DATA,
    Option("batch_size", None, "Targets per evaluation batch; by default the run's.", kind=int, min=1),
    Option("cutoffs", None, "Cut-offs of the metrics, as 5,10,20,50,100; by default the run's."),
    Option("per_user", None, "File for the ranks of each user's targets, .parquet or .csv."),
    Option("device", "auto", "Device: cpu, cuda, cuda:N, or auto for the GPU if there is one."),
    Option("threads", None, "Number of CPU threads.", kind=int, min=1, max=MAX_THREADS),
]


def command(argv: Sequence[str]) -> int:
    """Parse, evaluate, print."""
    parser = Parser("evaluate", "Recompute a run's table of metrics from its checkpoint and data.")
    parser.add_argument("run", metavar="RUN", help="Run folder.")
    parser.add(OPTIONS)
    options = parser.read(argv)
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    which = None if options["checkpoint"] == "auto" else options["checkpoint"]
    cutoffs = None if options["cutoffs"] is None else read_cutoffs(options["cutoffs"], "--cutoffs")
    per_user = None if options["per_user"] is None else per_user_path(options["per_user"], "--per_user")
    launch = Launch.read()
    console = result_console(quiet=launch.rank > 0)
    device = use_device(options["device"], launch.local_rank, launch.local_world)
    with join(device, launch) as processes:
        run = load_run(expand_path(options["run"], "RUN"), which, device, processes)
        if per_user is not None:
            run.folder.check_not_own(per_user, "--per_user")
        if len(set(processes.gather_text(json.dumps(run.state.as_dict())))) > 1:
            raise RunError(f"{run.folder.path}: its checkpoint was replaced while it was read; try again")
        data = load_data(run, processes=processes, **moved_paths(options))
        splits: tuple[Split, ...] = ("valid", "test") if options["split"] == "both" else (options["split"],)
        batch_size = options["batch_size"] or run.config.train.eval_batch_size
        rankings = evaluate(run, data, splits, batch_size, processes, cutoffs)
        if per_user is not None:
            processes.on_first(lambda: write_per_user(per_user, data, rankings))
    show_rankings(console, rankings, f"{run.folder.path.name}, {run.describe_checkpoint()}")
    for note in growth_notes(run.folder):
        say(console, note)
    if per_user is not None:
        say(console, f"written: {per_user}")
    say(console, f"data {data.description['source']}, sha256 {data.sha256[:16]}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command_line.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
