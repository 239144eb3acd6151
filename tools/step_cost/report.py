"""Prints the counts and the estimates."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.steps import SETTINGS
from tools.step_cost.counting import by_operator
from tools.step_cost.estimate import Device
from tools.step_cost.steps import Count, count_step, load_data


def step_table(name: str, count: Count, device: Device) -> Table:
    """A line for each operator: counts, estimates and what was measured. The caption has the memory."""
    calls, memory = count.calls, count.memory
    table = Table(title=f"{name}: counts, and estimates for an {device.figures['machine']['gpu']}")
    table.add_column("operator", no_wrap=True)
    for column in (
        "calls",
        "launches",
        "MB",
        "us by bytes",
        "us by instructions",
        "estimated us",
        "measured us",
    ):
        table.add_column(column, justify="right")
    for operator, (number, launches, size) in by_operator(calls).items():
        found = device.total(call for call in calls if call.name == operator)
        measured = device.measured_operator(operator.removeprefix("recgrela."), name)
        table.add_row(
            operator,
            str(number),
            str(launches),
            f"{size / 1e6:,.1f}",
            f"{found.by_bytes:,.0f}",
            f"{found.by_instructions:,.0f}" if found.by_instructions else "",
            f"{found.low:,.0f} to {found.high:,.0f}",
            "" if measured is None else f"{measured * number:,.0f}",
        )
    table.add_section()
    total, size = device.total(calls), sum(call.bytes for call in calls)
    estimated = f"{total.low:,.0f} to {total.high:,.0f}"
    counts = [str(len(calls)), str(sum(call.launches for call in calls)), f"{size / 1e6:,.1f}"]
    table.add_row("all", *counts, f"{total.by_bytes:,.0f}", "", estimated, "")
    steps = (f"{step['way']} {step['ms']} ms" for step in device.measured_steps(name))
    table.caption = (
        f"memory: {memory.resident / 1e6:,.1f} MB of parameters and optimizer + "
        f"{memory.peak / 1e6:,.1f} MB at the peak, in {memory.operator.replace('::', '.')}, "
        "without workspaces of operators\n"
        f"measured: at commit {device.figures['commit']}; whole steps: {', '.join(steps)}"
    )
    return table


def main(description: str | None) -> None:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(SETTINGS)
    parser.add_argument("--settings", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--json", action="store_true", help="print counts and memory as JSON")
    args = parser.parse_args()
    data = load_data()
    counts = {name: count_step(SETTINGS[name], data) for name in args.settings}
    if args.json:
        print(json.dumps({name: _as_json(count) for name, count in counts.items()}))
        return
    console, device = Console(), Device()
    for name, count in counts.items():
        console.print(step_table(name, count, device))


def _as_json(count: Count) -> dict[str, Any]:
    """Calls, launches and bytes of each operator, and bytes of memory."""
    return {"operators": by_operator(count.calls), "memory": asdict(count.memory)}
