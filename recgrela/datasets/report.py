"""Statistics of a data set as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from recgrela.data.statistics import QUANTILES
from recgrela.system.console import say

Line = tuple[str, str]  # what, and its value


def show(facts: Mapping[str, Any], console: Console) -> None:
    """Print the statistics that `python -m recgrela.data stats` computes."""
    kept = {name: value for name, value in facts["filter"].items() if value is not None}
    settings = ", ".join(f"{name} {value}" for name, value in kept.items())
    say(console, f"{facts['source']} ({facts['format']}), order {facts['order']}, {settings}")
    counts = facts["counts"]
    table = _table("users", "items", "interactions", "avg. length", "sparsity")
    table.add_row(
        *(f"{counts[name]:,}" for name in ("users", "items", "events")),
        f"{counts['mean_user_events']:,.2f}",
        _percent(counts["sparsity"]),
    )
    console.print(table)
    say(
        console,
        f"after the filter, of {facts['events_read']:,} events that were read; no padding ids are counted",
    )
    if facts["published"] is not None:
        say(console, _compare(facts["published"], counts))
    table = _table("events of", "mean", *QUANTILES)
    for name, section in (("a user", "lengths"), ("an item", "popularity")):
        values = (f"{facts[section][q]:,}" for q in QUANTILES)
        table.add_row(name, f"{facts[section]['mean']:,.1f}", *values)
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    for title, lines in _sections(facts):
        table.add_row(f"[bold]{title}[/bold]", "")
        for what, value in lines:
            table.add_row(f"  {what}", value)
    console.print(table)


def _sections(facts: Mapping[str, Any]) -> Iterator[tuple[str, list[Line]]]:
    found = facts["popularity"]
    yield (
        "popularity",
        [
            ("Gini coefficient of the events of items", f"{found['gini']:.3f}"),
            ("events of the most frequent 1 % of items", _percent(found["top_1%"])),
            ("events of the most frequent 10 % of items", _percent(found["top_10%"])),
            ("items with a single event", _percent(found["once"])),
        ],
    )
    found = facts["repeats"]
    yield (
        "repeated items",
        [
            ("events whose item the user had before", _percent(found["events"])),
            ("events whose item is that of the event just before", _percent(found["immediate"])),
            ("test targets that the user had before", _percent(found["targets"])),
        ],
    )
    yield "times", [*_times(facts), *_leakage(facts)]
    if (found := facts["order_scores"]) is not None:
        yield f"NDCG@10, {found['users']:,} users: seen items ranked, removed", list(_order(found))


def _times(facts: Mapping[str, Any]) -> Iterator[Line]:
    span, ties = facts["times"], facts["ties"]
    if span is None:
        yield "packed data have none" if facts["packed"] else "none are used, or all are equal", ""
        return
    if span["days"] is None:
        yield "first", str(span["first"])
        yield "last", str(span["last"])
    else:
        yield "first", str(span["first_date"] or span["first"])
        yield "last", str(span["last_date"] or span["last"])
        yield "from the first to the last event", _duration(span["days"])
        yield "the same of a user, median", _duration(span["median_user_days"])
    yield "events at the same time as the user's event before", _percent(ties["events"])
    yield "users with such a tie", _percent(ties["users"])
    yield "distinct times of a user, per event", f"{ties['distinct_times']:.3f}"
    yield "most events of a user at one time", f"{ties['largest']:,}"


def _leakage(facts: Mapping[str, Any]) -> Iterator[Line]:
    found = facts["leakage"]
    if found is None:
        return
    yield "test targets before the 90 % quantile of all times", _percent(found["targets_before_90%"])
    later = "training events later than the median test target"
    yield later, _percent(found["training_after_median_target"])
    yield "training events later than a test target, mean", _percent(found["training_after_target"])


def _order(found: Mapping[str, Any]) -> Iterator[Line]:
    names = {
        "popularity": "popularity",
        "repeat_last": "the user's last items, then popularity",
        "follow_last": "most frequent followers of the last item",
        "follow_last_shuffled": "the same, histories shuffled",
    }
    for name, what in names.items():
        yield what, f"{found[name]['seen_ranked']:.4f}  {found[name]['seen_removed']:.4f}"


def _compare(published: Mapping[str, int], counts: Mapping[str, Any]) -> str:
    """A line that compares published counts, which include padding ids, with one's own."""
    own = {"users": counts["users"] + 1, "items": counts["items"] + 1, "events": counts["events"]}
    shown = ", ".join(f"{published[name]:,} {name}" for name in own)
    differing = [f"{value:,} {name}" for name, value in own.items() if value != published[name]]
    end = f"; these data have {', '.join(differing)}" if differing else ", as here"
    return f"published, with padding ids: {shown}{end}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, justify="left", no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _duration(days: float) -> str:
    for unit, length in (("days", 1.0), ("hours", 24.0), ("minutes", 1440.0)):
        if days * length >= 1:
            return f"{days * length:,.1f} {unit}"
    return f"{days * 86400:,.1f} seconds"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
