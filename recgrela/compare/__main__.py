"""`python -m recgrela.compare`: train several models alike and write one table."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from recgrela.compare.figure import draw_bubbles
from recgrela.compare.options import parse_args
from recgrela.compare.plan import Plan, claim_folder, make_plan
from recgrela.compare.render import to_csv, to_markdown, to_tables
from recgrela.compare.runs import Runner
from recgrela.compare.table import TESTED, Row, make_rows, surroundings
from recgrela.evaluation.statistics import RESAMPLES
from recgrela.settings import command_line
from recgrela.system.console import say
from recgrela.system.files import atomic_write_text
from recgrela.system.runtime import Stopped

EXIT_FAILED_RUN = 1


def train_all(plan: Plan, console: Console) -> dict[tuple[str, int], str]:
    """Make the runs that are not finished; returns why some failed, by label and seed.

    Raises:
        RunError: the folder holds something else, or another comparison is at work there.
        Stopped: a signal arrived; the run in hand can go on where it was.
    """
    failures = {}
    with Runner(plan.request.out) as runner:
        claim_folder(plan)
        for number, run in enumerate(plan.runs, 1):
            name = f"{run.label}, seed {run.seed} ({number} of {len(plan.runs)})"
            if run.status == "finished":
                say(console, f"{name}: finished before")
                continue
            say(console, f"{name}: {run.folder.path}")
            failure = runner.make(run)
            if failure is not None:
                say(console, f"{name}: failed: {failure}")
                failures[run.label, run.seed] = failure
    return failures


def notes_of(plan: Plan, rows: Sequence[Row]) -> list[str]:
    """What a reader needs to know to read the table."""
    request = plan.request
    first = rows[0].contender.label
    seeds = ", ".join(map(str, request.seeds))
    notes = [
        f"Test split, all items ranked, the epoch chosen on the valid split; seeds {seeds}"
        + (", mean ± standard deviation over them." if len(request.seeds) > 1 else "."),
        f"In brackets: 95 % bootstrap interval over users ({RESAMPLES:,} draws) of their scores averaged "
        "over seeds. Bold: best, underlined: second.",
        f"p: paired sign-flip test of the users' {TESTED} against {first}, {RESAMPLES:,} draws, corrected by "
        "Holm's method.",
        "s/epoch: median, evaluation left out. Best epoch and epochs: medians over seeds. Peak memory: of "
        "training and its evaluation, the most of any run.",
        f"FLOPs: of scoring all items after one history of {request.data.max_len} items, a multiply-add "
        "being 2; scoring items: the part of it after the encoder.",
    ]
    objectives: dict[str, list[str]] = {}
    for row in rows:
        objective = row.contender.runs[0].config.train.objective
        objectives.setdefault(objective, []).append(row.contender.label)
    notes += [f"Objective {name}: {', '.join(labels)}." for name, labels in objectives.items()]
    notes += [
        f"FAILED: {row.contender.label}, seed {seed}: {reason}"
        for row in rows
        for seed, reason in row.failures.items()
    ]
    places = surroundings(plan.contenders)
    if len(places) > 1:
        notes.append(f"The runs were made in different surroundings, so times do not compare: {places}")
    return notes


def write_all(plan: Plan, failures: Mapping[tuple[str, int], str], console: Console) -> list[Path]:
    """Compute, write and show the table; returns the files.

    Raises:
        RunError: a file of a run is damaged, two runs ranked different users, or a file cannot be written.
    """
    rows = make_rows(plan.contenders, failures)
    notes = notes_of(plan, rows)
    markdown, table, figure = (plan.request.out / name for name in ("table.md", "table.csv", "bubbles.png"))
    atomic_write_text(markdown, to_markdown(rows, notes))
    atomic_write_text(table, to_csv(rows))
    written = [markdown, table]
    if draw_bubbles(figure, rows):
        written.append(figure)
    tables = to_tables(rows)
    options = console.options.update(max_width=1000)
    # A narrow terminal wraps the lines of a table: no number is cut.
    console.width = max(console.width, *(console.measure(part, options=options).maximum for part in tables))
    console.print(*tables)
    for note in notes:
        say(console, note)
    return written


def command(argv: Sequence[str]) -> int:
    """Parse, train what is not trained yet, and write the table."""
    plan = make_plan(parse_args(argv))
    console = Console()
    try:
        failures = train_all(plan, console)
    except Stopped as stop:
        done = sum(run.status == "finished" for run in plan.runs)
        say(
            console,
            f"stopped by {signal.Signals(stop.signum).name}, {done} of {len(plan.runs)} runs finished",
        )
        say(console, "go on with the same command")
        return command_line.EXIT_SIGNAL + stop.signum
    written = write_all(plan, failures, console)
    say(console, f"written: {', '.join(map(str, written))}")
    return EXIT_FAILED_RUN if failures else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command_line.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
