"""`python -m recgrela.export RUN`: export a run's model as one file for online use without recgrela."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from recgrela.inference.export import FORMATS, check_path, export_model
from recgrela.runs.saved import load_run
from recgrela.settings import command_line
from recgrela.settings.command_line import Parser
from recgrela.settings.fields import Option
from recgrela.system.console import say
from recgrela.system.device import use_device
from recgrela.system.errors import ConfigError
from recgrela.system.files import expand_path
from recgrela.system.out_of_memory import MemoryPhase
from recgrela.system.output import display_console

OPTIONS = [
    Option("output", None, "File to write; FILE.json beside it describes items and states."),
    Option(
        "format",
        "pt2",
        "pt2: a graph of torch.export; aoti: a library compiled by AOTInductor, which needs a C++ compiler; "
        "onnx: a graph for ONNX runtimes.",
        choices=FORMATS,
    ),
    Option("k", 10, "Number of recommendations per user.", kind=int, min=1),
    Option(
        "checkpoint", "auto", "Checkpoint; auto: that of the final table.", choices=("auto", "best", "last")
    ),
]


def command(argv: Sequence[str]) -> int:
    """Parse, load, export, print."""
    parser = Parser("export", "Export a run's model as a program for online use.")
    parser.add_argument("run", metavar="RUN", help="Run folder.")
    parser.add(OPTIONS)
    options = parser.read(argv)
    if options["output"] is None:
        raise ConfigError("give the file to write: --output FILE")
    path = expand_path(options["output"], "--output")
    check_path(path, options["format"])
    which = None if options["checkpoint"] == "auto" else options["checkpoint"]
    run = load_run(expand_path(options["run"], "run"), which, use_device("cpu"))
    with MemoryPhase("exporting the model", "this model and format (--format) need more memory"):
        export_model(run.model, run.read_items(), options["k"]).write(path, options["format"])
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    say(display_console(), f"written: {path} ({size}) and {path.name}.json")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command_line.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
