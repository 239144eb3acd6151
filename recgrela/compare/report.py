"""The report of a comparison: its table, as files and on a console, with notes that explain it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from recgrela.compare.figure import draw_bubbles
from recgrela.compare.plan import Plan
from recgrela.compare.rows import Row, environments, make_rows
from recgrela.compare.table import first_network, to_csv, to_markdown, to_tables
from recgrela.data import EvalBatches
from recgrela.evaluation.baselines import rank_trivial_models
from recgrela.evaluation.metrics import Ranking
from recgrela.evaluation.significance import RESAMPLES
from recgrela.system.console import print_whole, say
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
        RunError: a file of a run is damaged, two runs ranked different targets, or a file cannot be written.
    """
    data, train = plan.request.data, plan.request.train
    sizes = (data.history_len, train.eval_batch_size)
    batches = EvalBatches(plan.data, "test", *sizes, max_users=data.eval_users)
    trivial = rank_trivial_models(plan.data, batches, train.cutoff_numbers)
    rows = make_rows(plan.contenders, failures, trivial, train)
    notes = make_notes(plan, rows, trivial)
    markdown, table, figure = (plan.request.out / name for name in ("table.md", "table.csv", "bubbles.png"))
    atomic_write_text(markdown, to_markdown(rows, train, notes))
    atomic_write_text(table, to_csv(rows, train))
    written = [markdown, table]
    if draw_bubbles(figure, rows, train.metric):
        written.append(figure)
    print_whole(console, *to_tables(rows, train))
    for note in notes:
        say(console, note)
    return written


def make_notes(plan: Plan, rows: Sequence[Row], trivial: Mapping[str, Ranking]) -> list[str]:
    """The conditions and definitions behind the table's numbers, and its failed runs."""
    request = plan.request
    first, metric = first_network(rows), request.train.metric
    seeds = ", ".join(map(str, request.seeds))
    ranking = next(iter(trivial.values()))
    assert ranking.lists is not None
    popular = ranking.lists.target_popularity
    notes = [
        f"Epoch chosen by {metric} on the valid split, all items ranked; seeds {seeds}"
        + (", mean ± standard deviation over seeds." if len(request.seeds) > 1 else "."),
        f"In parentheses: 95% bootstrap interval over users ({RESAMPLES:,} draws) of their scores averaged "
        "over seeds. Bold: best, underlined: second best.",
        f"p: paired sign-flip test of the users' {metric} against {first}, {RESAMPLES:,} draws, corrected by "
        "Holm's method for the tests of a table.",
        "popularity: number of training events; repeat last: the history's items, the latest first, then "
        "popularity; follow last: how often an item followed the last item in training; ItemKNN: cosine "
        "similarities with the history's items, 100 neighbours. They have no weights and no seeds. Equal "
        "scores count against every model.",
        "coverage@k: share of the items that are among the first k for any target; popularity@k: mean number "
        f"of training events of the first k items. The targets have {popular:,.1f} training events.",
        "s/epoch: median, without evaluation. Best epoch and epochs: medians over seeds. Peak memory: "
        "maximum over runs, of training and its evaluation.",
        f"FLOPs: operations for scoring all items after one history of {request.data.max_len} items, where a "
        "multiply-add counts as 2; scoring items: the operations after the encoder.",
    ]
    if ranking.new_targets < ranking.targets:
        notes.append(
            f"{ranking.targets - ranking.new_targets:,} of {ranking.targets:,} targets are items that the "
            "user has seen; with seen items removed they are misses."
        )
    objectives: dict[str, list[str]] = {}
    for contender in plan.contenders:
        objectives.setdefault(contender.runs[0].config.train.objective, []).append(contender.label)
    notes += [f"Objective {name}: {', '.join(labels)}." for name, labels in objectives.items()]
    notes += [
        f"FAILED: {row.label}, seed {seed}: {reason}" for row in rows for seed, reason in row.failures.items()
    ]
    found = environments(plan.contenders)
    if len(found) > 1:
        notes.append(f"The runs were made in different environments, so times are not comparable: {found}")
    return notes
