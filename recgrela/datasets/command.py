"""`python -m recgrela.data stats|convert|get`: choose the command."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from recgrela.datasets import convert, get, stats
from recgrela.settings import command_line
from recgrela.settings.command_line import Parser
from recgrela.settings.fields import check_known
from recgrela.system.errors import ConfigError

COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "stats": (stats.command, "print what a data set has, and whether the order of its events says anything"),
    "convert": (convert.command, "write events in the packed form, which is memory-mapped instead of loaded"),
    "get": (get.command, "download a known data set, or say where it is"),
}


def command(argv: Sequence[str]) -> int:
    """Run the command that the first word names."""
    name, *rest = argv or [""]
    if name in COMMANDS:
        return COMMANDS[name][0](rest)
    words = "; ".join(f"{name}: {does}" for name, (_, does) in COMMANDS.items())
    parser = Parser("data", f"Commands: {words}.", usage="python -m recgrela.data {stats,convert,get} ...")
    parser.epilog = "Give a command and --help for its options."
    parser.split(argv)  # prints --help
    if not name or name.startswith("-"):
        raise ConfigError(f"give a command first: {', '.join(COMMANDS)}")
    check_known([name], COMMANDS, "unknown command")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command_line.run(command, argv)
