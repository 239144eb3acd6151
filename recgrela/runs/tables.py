"""The tables of a run's rankings on a console."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from recgrela.evaluation.metrics import Ranking
from recgrela.system.console import print_whole, say


def metrics_table(rankings: Mapping[str, Ranking]) -> Table:
    """Two rows for each split, all items ranked and seen items removed; two more for its new targets.

    The new targets are shown where some targets are not new.
    """
    rows = []
    for split, ranking in rankings.items():
        rows += [(split, "all", "ranked", ranking.values), (split, "all", "removed", ranking.masked)]
        if ranking.new_targets < ranking.targets:
            new = f"{ranking.new_targets:,} new"
            if ranking.new_values is not None and ranking.new_masked is not None:
                rows.append((split, new, "ranked", ranking.new_values))
                rows.append((split, new, "removed", ranking.new_masked))
    table = Table()
    for heading in ("split", "targets", "seen items"):
        table.add_column(heading)
    for name in rows[0][-1]:
        table.add_column(name, justify="right")
    for *cells, values in rows:
        table.add_row(*cells, *(f"{value:.4f}" for value in values.values()))
    return table


def lists_table(rankings: Mapping[str, Ranking]) -> Table | None:
    """Coverage and popularity of the recommended items; None without figures of them."""
    rows = []
    for split, ranking in rankings.items():
        if (lists := ranking.lists) is not None:
            rows.append((split, "ranked", lists.coverage, lists.popularity))
            rows.append((split, "removed", lists.masked_coverage, lists.masked_popularity))
    if not rows:
        return None
    table = Table()
    for heading in ("split", "seen items"):
        table.add_column(heading)
    for name in (*rows[0][2], *rows[0][3]):
        table.add_column(name, justify="right")
    for split, seen, coverage, popularity in rows:
        cells = [f"{value:.4f}" for value in coverage.values()]
        table.add_row(split, seen, *cells, *(f"{value:,.1f}" for value in popularity.values()))
    return table


def notes(rankings: Mapping[str, Ranking]) -> list[str]:
    """A line for each split whose metrics depend on ties, and for each with targets that are not new."""
    found = [
        f"{split}: ties counted against the model for {ranking.ties} of {ranking.targets} targets "
        f"({ranking.masked_ties} with seen items removed)"
        for split, ranking in rankings.items()
        if ranking.ties or ranking.masked_ties
    ]
    for split, ranking in rankings.items():
        seen = ranking.targets - ranking.new_targets
        if seen:
            found.append(
                f"{split}: {seen:,} of {ranking.targets:,} targets are items that the user has seen; with "
                "seen items removed they are misses"
            )
    return found


def show_rankings(console: Console, rankings: Mapping[str, Ranking], title: str) -> None:
    """Print a title, the tables and notes about ties and seen targets."""
    say(console, title)
    tables = [metrics_table(rankings), lists_table(rankings)]
    print_whole(console, *(table for table in tables if table is not None))
    for note in notes(rankings):
        say(console, note)
