"""`python -m recgrela.env`: what was built, and what of it this machine can use."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import recgrela
from recgrela import cli
from recgrela.ops import has_kernels
from recgrela.ops._library import _C


def facts() -> dict[str, Any]:
    """Versions, build facts and what is usable, as plain values."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "recgrela": recgrela.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "built": {
            "torch": _C.torch_version,
            "compiler": _C.compiler,
            "cuda": _C.cuda_version,
            "cuda_architectures": _C.cuda_architectures,
        },
        "cpu": {"kernels": has_kernels("cpu"), "isa": _C.cpu_isa(), "threads": torch.get_num_threads()},
        "cuda": {"kernels": has_kernels("cuda"), "gpu": gpu, "usable": _cuda_usable(gpu)},
    }


def _cuda_usable(gpu: str | None) -> str:
    if not has_kernels("cuda"):
        return "no: this build has CPU kernels only"
    if gpu is None:
        return "no: PyTorch sees no GPU" if torch.version.cuda else "no: this PyTorch is a CPU build"
    return "yes"


def command(argv: Sequence[str]) -> int:
    """Print the facts; exit code 0 if the CPU kernels are usable (importing them already showed it)."""
    parser = cli.make_parser("env", "Show what was built and what this machine can use of it.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    options = cli.parse(parser, argv)
    found = facts()
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    table = Table(show_header=False)
    for name, value in found.items():
        if isinstance(value, dict):
            for key, item in value.items():
                table.add_row(f"{name}.{key}", str(item))
        else:
            table.add_row(name, str(value))
    Console().print(table)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
