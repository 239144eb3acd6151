"""The report of a comparison: its table, as files and on a console, with notes that explain it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from recgrela.compare.figure import draw_bubbles
from recgrela.compare.plan import Plan
from recgrela.compare.rows import TESTED, Row, environments, make_rows
from recgrela.compare.table import to_csv, to_markdown, to_tables
from recgrela.evaluation.significance import RESAMPLES
from recgrela.system.console import say
from recgrela.system.files import atomic_write_text


def write_report(plan: Plan, failures: Mapping[tuple[str, int], str], console: Console) -> list[Path]:
    """Compute, write and print the table.

    Args:
        plan: the comparison.
        failures: reasons of failed runs, by label and seed.
        console: the output.

    Returns:
        The files that were written.

    Raises:
        RunError: a file of a run is damaged, two runs ranked different users, or a file cannot be written.
    """
    rows = make_rows(plan.contenders, failures)
    notes = make_notes(plan, rows)
    markdown, table, figure = (plan.request.out / name for name in ("table.md", "table.csv", "bubbles.png"))
    atomic_write_text(markdown, to_markdown(rows, notes))
    atomic_write_text(table, to_csv(rows))
    written = [markdown, table]
    if draw_bubbles(figure, rows):
        written.append(figure)
    tables = to_tables(rows)
    options = console.options.update(max_width=1000)
    # A narrow terminal wraps the table's lines instead of cutting numbers.
    console.width = max(console.width, *(console.measure(part, options=options).maximum for part in tables))
    console.print(*tables)
    for note in notes:
        say(console, note)
    return written


def make_notes(plan: Plan, rows: Sequence[Row]) -> list[str]:
    """The conditions and definitions behind the table's numbers, and its failed runs."""
    request = plan.request
    first = rows[0].contender.label
    seeds = ", ".join(map(str, request.seeds))
    notes = [
        f"Test split, all items ranked, epoch chosen on the valid split; seeds {seeds}"
        + (", mean ± standard deviation over seeds." if len(request.seeds) > 1 else "."),
        f"In parentheses: 95% bootstrap interval over users ({RESAMPLES:,} draws) of their scores averaged "
        "over seeds. Bold: best, underlined: second best.",
        f"p: paired sign-flip test of the users' {TESTED} against {first}, {RESAMPLES:,} draws, corrected by "
        "Holm's method.",
        "s/epoch: median, without evaluation. Best epoch and epochs: medians over seeds. Peak memory: "
        "maximum over runs, of training and its evaluation.",
        f"FLOPs: operations for scoring all items after one history of {request.data.max_len} items, where a "
        "multiply-add counts as 2; scoring items: the operations after the encoder.",
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
    found = environments(plan.contenders)
    if len(found) > 1:
        notes.append(f"The runs were made in different environments, so times are not comparable: {found}")
    return notes
