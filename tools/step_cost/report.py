"""Prints the counts."""

from __future__ import annotations

import argparse
import json

from rich.console import Console
from rich.table import Table

from benchmarks.steps import SETTINGS
from tools.step_cost.counting import by_operator
from tools.step_cost.steps import count_step, load_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = list(SETTINGS)
    parser.add_argument("--settings", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    data = load_data()
    counts = {name: by_operator(count_step(SETTINGS[name], data)) for name in args.settings}
    if args.json:
        print(json.dumps(counts))
        return
    console = Console()
    for name, totals in counts.items():
        table = Table("operator", "calls", "launches", "MB", title=name)
        for operator, (calls, launches, size) in totals.items():
            table.add_row(operator, str(calls), str(launches), f"{size / 1e6:,.1f}")
        table.add_section()
        sums = [sum(total[i] for total in totals.values()) for i in range(3)]
        table.add_row("all", str(sums[0]), str(sums[1]), f"{sums[2] / 1e6:,.1f}")
        console.print(table)
