"""A comparison's table as Markdown, as CSV and for a terminal."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from recgrela.compare.rows import TESTED, Cost, Quality, Row
from recgrela.evaluation.metrics import NAMES

COSTS = ("s/epoch", "best epoch", "epochs", "peak memory", "parameters", "FLOPs", "scoring items")
Mark = Callable[[str, int], str]  # (text of a cell, rank of its model from 0) -> marked text


def to_markdown(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Tables of quality and cost, and notes. The best value is bold, the second best underlined."""
    first = rows[0].contender.label
    heads = ["model", *NAMES, f"p against {first}"]
    lines = _markdown_table(heads, [_quality_cells(row, rows, _mark_markdown, "<br>") for row in rows])
    lines += ["", *_markdown_table(["model", *COSTS], [_cost_cells(row) for row in rows])]
    lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def to_tables(rows: Sequence[Row]) -> tuple[Table, Table]:
    """Tables of quality and cost for a terminal."""
    quality, cost = Table(title="test split, all items ranked"), Table(title="cost")
    for table, heads in ((quality, ("model", *NAMES, "p")), (cost, ("model", *COSTS))):
        for head in heads:
            table.add_column(head, justify="left" if head == "model" else "right")
    for row in rows:
        quality.add_row(*map(Text.from_markup, _quality_cells(row, rows, _mark_rich, "\n")))
        cost.add_row(*_cost_cells(row))
    return quality, cost


def to_csv(rows: Sequence[Row]) -> str:
    """A line for each model, with unrounded numbers."""
    file = io.StringIO()
    lines = [_csv_line(row) for row in rows]
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _csv_line(row: Row) -> dict[str, Any]:
    """The cells of a model; missing numbers are None."""
    contender, quality, cost = row.contender, row.quality, row.cost
    line: dict[str, Any] = {"label": contender.label, "model": contender.name}
    line["objective"] = contender.runs[0].config.train.objective
    line["seeds"] = " ".join(map(str, row.seeds))
    line["failed_seeds"] = " ".join(map(str, row.failures))
    for name in NAMES:
        line[name] = quality.mean[name] if quality else None
        line[f"{name} sd"] = quality.deviation[name] if quality and quality.deviation else None
        line[f"{name} low"], line[f"{name} high"] = quality.interval[name] if quality else (None, None)
    line[f"p {TESTED}"] = quality.p_value if quality else None
    line["epoch_seconds"] = cost.epoch_seconds if cost else None
    line["best_epochs"] = " ".join(map(str, cost.best_epochs)) if cost else None
    line["epochs"] = " ".join(map(str, cost.epochs)) if cost else None
    line["peak_memory"] = cost.peak_memory if cost else None
    line["parameters"] = contender.parameters
    line["flops"], line["flops_scores"] = contender.flops.total, contender.flops.scores
    return line


def _quality_cells(row: Row, rows: Sequence[Row], mark: Mark, newline: str) -> list[str]:
    """Label, a cell for each metric (mean, deviation, interval), and p."""
    quality = row.quality
    if quality is None:
        return [row.contender.label, *["failed"] * len(NAMES), "-"]
    cells = []
    for name in NAMES:
        means = sorted({round(other.quality.mean[name], 4) for other in rows if other.quality}, reverse=True)
        text = mark(f"{quality.mean[name]:.4f}", means.index(round(quality.mean[name], 4)))
        deviation = f" ± {quality.deviation[name]:.4f}" if quality.deviation else ""
        low, high = quality.interval[name]
        cells.append(f"{text}{deviation}{newline}({low:.4f}, {high:.4f})")
    return [row.contender.label, *cells, _p_text(quality)]


def _mark_markdown(text: str, place: int) -> str:
    return {0: f"**{text}**", 1: f"<u>{text}</u>"}.get(place, text)


def _mark_rich(text: str, place: int) -> str:
    return {0: f"[bold]{text}[/]", 1: f"[underline]{text}[/]"}.get(place, text)


def _p_text(quality: Quality) -> str:
    return "-" if quality.p_value is None else f"{quality.p_value:.4f}"


def _cost_cells(row: Row) -> list[str]:
    flops, cost = row.contender.flops, row.cost
    counted = [f"{row.contender.parameters:,}", _short(flops.total), _short(flops.scores)]
    return [row.contender.label, *(_training_cells(cost) if cost else ["-"] * 4), *counted]


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
