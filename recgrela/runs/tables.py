"""The table of a run's rankings on a console."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from recgrela.evaluation.metrics import NAMES, Ranking
from recgrela.system.console import say


def metrics_table(rankings: Mapping[str, Ranking]) -> Table:
    """Two rows for each split: all items ranked, and seen items removed."""
    table = Table()
    table.add_column("split")
    table.add_column("seen items")
    for name in NAMES:
        table.add_column(name, justify="right")
    for split, ranking in rankings.items():
        for seen, values in (("ranked", ranking.values), ("removed", ranking.masked)):
            table.add_row(split, seen, *(f"{values[name]:.4f}" for name in NAMES))
    return table


def tie_notes(rankings: Mapping[str, Ranking]) -> list[str]:
    """A line for each split whose metrics depend on ties."""
    return [
        f"{split}: ties counted against the model for {ranking.ties} of {ranking.users} users "
        f"({ranking.masked_ties} with seen items removed)"
        for split, ranking in rankings.items()
        if ranking.ties or ranking.masked_ties
    ]


def show_rankings(console: Console, rankings: Mapping[str, Ranking], title: str) -> None:
    """Print a title, the table and notes about ties."""
    say(console, title)
    console.print(metrics_table(rankings))
    for note in tie_notes(rankings):
        say(console, note)
