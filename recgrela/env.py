"""`python -m recgrela.env`: show how recgrela was built and whether its kernels run on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from recgrela.settings import command_line
from recgrela.settings.command_line import Parser
from recgrela.settings.fields import Option
from recgrela.system.environment import environment_facts
from recgrela.system.output import result_console, write_result

NOT_USABLE = 1  # the exit code; 2 is an error in the command line

REQUIRE = Option(
    "require",
    None,
    "Device on which the kernels must run for exit code 0, else 1; by default the CPU and every GPU that "
    "PyTorch detects.",
    choices=("cpu", "cuda"),
)


def command(argv: Sequence[str]) -> int:
    """Print the facts.

    Returns:
        0 if the kernels run on the device of --require, or without it on the CPU and on every GPU that
        PyTorch detects; else 1.
    """
    parser = Parser("env", "Show how recgrela was built and whether its kernels run on this machine.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add([REQUIRE])
    options = parser.read(argv)
    facts = environment_facts()
    if options["json"]:
        write_result(json.dumps(facts, indent=2) + "\n")
    else:
        result_console().print(_table(facts))
    if options["require"]:
        usable = facts[options["require"]]["usable"]
    else:
        usable = facts["cpu"]["usable"] and all(gpu["usable"] for gpu in facts["cuda"]["gpus"])
    return 0 if usable else NOT_USABLE


def _table(facts: dict[str, Any]) -> Table:
    """A row for each fact with a value; nested names are joined by dots."""
    table = Table(show_header=False)

    def add(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                add(f"{name}.{key}", item)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, item in enumerate(value):
                add(f"{name}.{index}", item)
        elif value is None or value == []:
            return
        elif isinstance(value, bool):
            table.add_row(name, "yes" if value else "no")
        else:
            table.add_row(name, ", ".join(value) if isinstance(value, list) else str(value))

    for name, value in facts.items():
        add(name, value)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command_line.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
