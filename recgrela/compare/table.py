"""A comparison's tables as Markdown, as CSV and for a terminal."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from recgrela.compare.rows import VARIANTS, Cost, Row, Variant
from recgrela.settings.train import TrainConfig, metric_names

COSTS = ("s/epoch", "best epoch", "epochs", "peak memory", "parameters", "FLOPs", "scoring items")
Mark = Callable[[str, int], str]  # (text of a cell, rank of its model from 0) -> marked text


def to_markdown(rows: Sequence[Row], train: TrainConfig, notes: Sequence[str]) -> str:
    """Tables of quality, of recommended items and of cost, and notes.

    The best value is bold, the second best underlined.
    """
    names, first = metric_names(train.cutoff_numbers), first_network(rows)
    lines: list[str] = []
    for variant in shown_variants(rows):
        cells = [_quality_cells(row, rows, variant, names, _mark_markdown, "<br>") for row in rows]
        lines += [f"Test split, {VARIANTS[variant]}:", ""]
        lines += [*_markdown_table(["model", *names, f"p against {first}"], cells), ""]
    lines += ["Recommended items:", ""]
    lines += [*_markdown_table(*_lists(rows)), ""]
    costs = [_cost_cells(row) for row in rows if row.contender is not None]
    lines += ["Cost:", "", *_markdown_table(["model", *COSTS], costs)]
    lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def to_tables(rows: Sequence[Row], train: TrainConfig) -> list[Table]:
    """The same tables for a terminal."""
    names = metric_names(train.cutoff_numbers)
    tables = []
    for variant in shown_variants(rows):
        cells = [_quality_cells(row, rows, variant, names, _mark_rich, "\n") for row in rows]
        tables.append(_rich_table(f"test split, {VARIANTS[variant]}", ["model", *names, "p"], cells))
    tables.append(_rich_table("recommended items", *_lists(rows)))
    costs = [_cost_cells(row) for row in rows if row.contender is not None]
    return [*tables, _rich_table("cost", ["model", *COSTS], costs)]


def to_csv(rows: Sequence[Row], train: TrainConfig) -> str:
    """A line for each model, with unrounded numbers.

    Columns of metrics are those of all items ranked; the others begin with their variant, as "removed HR@10".
    """
    file = io.StringIO()
    variants, heads = shown_variants(rows), _list_columns(rows)
    lines = [_csv_line(row, variants, heads, train) for row in rows]
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def first_network(rows: Sequence[Row]) -> str:
    """The label of the network that all other rows are tested against."""
    return next(row.label for row in rows if row.contender is not None)


def shown_variants(rows: Sequence[Row]) -> list[Variant]:
    """The variants that any row has; all items ranked in any case."""
    return [variant for variant in VARIANTS if variant == "ranked" or any(variant in r.quality for r in rows)]


def _csv_line(
    row: Row, variants: Sequence[Variant], lists: Sequence[tuple[Variant, str]], train: TrainConfig
) -> dict[str, Any]:
    """The cells of a row; missing numbers are None."""
    contender, cost = row.contender, row.cost
    line: dict[str, Any] = {"label": row.label, "model": contender.name if contender else "trivial"}
    line["objective"] = contender.runs[0].config.train.objective if contender else None
    line["seeds"] = " ".join(map(str, row.seeds))
    line["failed_seeds"] = " ".join(map(str, row.failures))
    for variant in variants:
        quality, prefix = row.quality.get(variant), _prefix(variant)
        for name in metric_names(train.cutoff_numbers):
            head = f"{prefix}{name}"
            line[head] = quality.mean[name] if quality else None
            line[f"{head} sd"] = quality.deviation[name] if quality and quality.deviation else None
            line[f"{head} low"], line[f"{head} high"] = quality.interval[name] if quality else (None, None)
        line[f"{prefix}p {train.metric}"] = quality.p_value if quality else None
    for variant, name in lists:
        line[f"{_prefix(variant)}{name}"] = row.lists[variant][name] if row.lists else None
    line["epoch_seconds"] = cost.epoch_seconds if cost else None
    line["best_epochs"] = " ".join(map(str, cost.best_epochs)) if cost else None
    line["epochs"] = " ".join(map(str, cost.epochs)) if cost else None
    line["peak_memory"] = cost.peak_memory if cost else None
    line["parameters"] = contender.parameters if contender else None
    line["flops"] = contender.flops.total if contender else None
    line["flops_scores"] = contender.flops.scores if contender else None
    return line


def _prefix(variant: Variant) -> str:
    return "" if variant == "ranked" else f"{variant} "


def _quality_cells(
    row: Row, rows: Sequence[Row], variant: Variant, names: Sequence[str], mark: Mark, newline: str
) -> list[str]:
    """Label, a cell for each metric (mean, deviation, interval), and p."""
    quality = row.quality.get(variant)
    if quality is None:
        return [row.label, *["failed"] * len(names), "-"]
    others = [other.quality[variant] for other in rows if variant in other.quality]
    cells = []
    for name in names:
        means = sorted({round(other.mean[name], 4) for other in others}, reverse=True)
        text = mark(f"{quality.mean[name]:.4f}", means.index(round(quality.mean[name], 4)))
        deviation = f" ± {quality.deviation[name]:.4f}" if quality.deviation else ""
        low, high = quality.interval[name]
        cells.append(f"{text}{deviation}{newline}({low:.4f}, {high:.4f})")
    return [row.label, *cells, "-" if quality.p_value is None else f"{quality.p_value:.4f}"]


def _list_columns(rows: Sequence[Row]) -> list[tuple[Variant, str]]:
    lists = next((row.lists for row in rows if row.lists), {})
    return [(variant, name) for variant, figures in lists.items() for name in figures]


def _lists(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of the figures of recommended items: a line for each model and variant."""
    columns = _list_columns(rows)
    names = list(dict.fromkeys(name for _, name in columns))
    lines = []
    for row in rows:
        for variant in dict.fromkeys(variant for variant, _ in columns):
            cells = ["failed"] * len(names)
            if row.lists:
                values = [(name, row.lists[variant][name]) for name in names]
                cells = [f"{x:.4f}" if name.startswith("coverage") else f"{x:,.1f}" for name, x in values]
            lines.append([row.label, variant, *cells])
    return ["model", "seen items", *names], lines


def _mark_markdown(text: str, place: int) -> str:
    return {0: f"**{text}**", 1: f"<u>{text}</u>"}.get(place, text)


def _mark_rich(text: str, place: int) -> str:
    return {0: f"[bold]{text}[/]", 1: f"[underline]{text}[/]"}.get(place, text)


def _cost_cells(row: Row) -> list[str]:
    assert row.contender is not None
    flops, cost = row.contender.flops, row.cost
    counted = [f"{row.contender.parameters:,}", _short(flops.total), _short(flops.scores)]
    return [row.label, *(_training_cells(cost) if cost else ["-"] * 4), *counted]


def _training_cells(cost: Cost) -> list[str]:
    seconds = "-" if cost.epoch_seconds is None else f"{cost.epoch_seconds:.3g}"
    memory = "-" if cost.peak_memory is None else f"{cost.peak_memory / 1e6:,.0f} MB"
    return [seconds, _median(cost.best_epochs), _median(cost.epochs), memory]


def _median(numbers: Sequence[int]) -> str:
    return f"{statistics.median(numbers):g}"


def _short(number: float) -> str:
    """Three digits and a unit, for example 71.1 M."""
    for unit in ("", " k", " M", " G", " T"):
        if number < 999.5 or unit == " T":
            break
        number /= 1000
    return f"{number:.3g}{unit}"


def _markdown_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = "|---|" + "---:|" * (len(heads) - 1)
    return ["| " + " | ".join(heads) + " |", rule, *("| " + " | ".join(cells) + " |" for cells in lines)]


def _rich_table(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for head in heads:
        table.add_column(head, justify="left" if head in ("model", "seen items") else "right")
    for cells in lines:
        table.add_row(*map(Text.from_markup, cells))
    return table
