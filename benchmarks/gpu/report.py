"""The report of gpu_check: a JSON file, and tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.timing import OURS
from recgrela.system.files import atomic_write_text

COLORS = {"passed": "green", "failed": "red", "skipped": "yellow"}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file atomically."""
    atomic_write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def steps_table(steps: Sequence[dict[str, Any]]) -> Table:
    """A line for each step."""
    table = Table(title="gpu_check")
    for name in ("step", "result"):
        table.add_column(name, no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    table.add_column("summary", overflow="fold")
    for step in steps:
        status = f"[{COLORS[step['status']]}]{step['status']}[/]"
        table.add_row(step["step"], status, f"{step['seconds']:.1f}", escape(step["summary"]))
    return table


def peer_text(peer: dict[str, Any] | None) -> str:
    """A peer's times divided by ours, forward and backward, or its note."""
    if peer is None:
        return "-"
    if "ratio" not in peer:
        return escape(peer.get("note", "-"))
    return f"{peer['forward_ratio']:.2f} / {peer['backward_ratio']:.2f}"


def megabytes(size: float | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.0f}"


def benchmark_table(details: dict[str, Any]) -> Table:
    """A line for each case: times, share of a copy's bandwidth, and each peer's times divided by ours."""
    table = Table(
        title=f"forward / backward; share of a copy's bandwidth, {details['copy_gb_s']:,.0f} GB/s",
        caption="peers: their times divided by ours, forward / backward",
    )
    for name in ("case", "us", "GB/s", "share of copy", "peak MB", "eager", "torch.compile", "packages"):
        table.add_column(name, overflow="fold")
    for case in details["cases"]:
        if "ours" not in case:
            table.add_row(case["case"], f"{case['status']}: {escape(case.get('fault', ''))}")
            continue
        ours, peers = case["ours"], case["peers"]

        def pair(key: str, scale: float = 1.0, ours: dict[str, Any] = ours) -> str:
            return f"{scale * ours[f'forward_{key}']:,.0f} / {scale * ours[f'backward_{key}']:,.0f}"

        faster = case.get("faster_eager")
        plain = [name for name in peers if name.startswith("eager")]
        best = peers.get(faster or next(iter(plain), ""))
        compiled = next((name for name in peers if name.startswith("torch.compile")), None)
        others = [name for name in peers if name not in (*plain, compiled)]
        memory = megabytes(ours["peak_bytes"])
        if best is not None and best.get("peak_bytes") is not None:
            memory += f" (eager {megabytes(best['peak_bytes'])})"
        table.add_row(
            case["case"],
            pair("us"),
            pair("gb_s"),
            pair("share", 100) + " %",
            memory,
            peer_text(best) + (f" ({faster.removeprefix('eager ')})" if faster else ""),
            peer_text(peers.get(compiled)),
            "\n".join(f"{name}: {peer_text(peers[name])}" for name in others) or "-",
        )
    return table


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def whole_step_table(details: dict[str, Any]) -> Table:
    """A line for each way to take a training step."""
    table = Table(title="a whole training step")
    for name in ("setting", "way"):
        table.add_column(name, no_wrap=True)
    for name in ("ms a step", "host ms", "peak MB"):
        table.add_column(name, justify="right")
    table.add_column("note", overflow="fold")
    for row in details["rows"]:
        figures = [number(row.get("ms")), number(row.get("host_ms")), number(row.get("peak_mb"), 0)]
        table.add_row(row["setting"], row["way"], *figures, escape(row.get("fault", row.get("note", ""))))
    return table


def kinds_table(row: dict[str, Any]) -> Table:
    """A line for each kind of kernel of a training step."""
    table = Table(title=f"{row['setting']}, {row['way']}: device time by kind of kernel")
    table.add_column("kind", overflow="fold")
    for name in ("ms a step", "launches"):
        table.add_column(name, justify="right")
    kinds = row["kinds"]
    for kind, figures in kinds.items():
        table.add_row(escape(kind), number(figures["ms"], 3), number(figures["launches"], 1))
    table.add_section()
    sums = [sum(figures[key] for figures in kinds.values()) for key in ("ms", "launches")]
    table.add_row("all", number(sums[0], 3), number(sums[1], 1))
    return table


def show(steps: Sequence[dict[str, Any]], console: Console) -> None:
    """The tables of benchmarks and training steps, the tails of failed steps, and one line for each step."""
    for step in steps:
        if step["step"] == "benchmarks" and step["details"].get("cases"):
            console.print(benchmark_table(step["details"]))
        if step["step"] == "whole_step" and step["details"].get("rows"):
            for row in step["details"]["rows"]:
                if row["way"] == OURS and row.get("kinds"):
                    console.print(kinds_table(row))
            console.print(whole_step_table(step["details"]))
        if step.get("tail"):
            console.print(f"-- {step['step']}: the end of its log", markup=False)
            console.print(step["tail"], markup=False, highlight=False)
    console.print(steps_table(steps))
