"""Counts the warp instructions of CUDA kernels by kind, from their machine code. Needs no GPU.

python -m tools.instructions                      compiles the kernels of OPS with nvcc, MAX_JOBS at a time
python -m tools.instructions PATH ...             reads a library with CUDA, objects or cubins
python -m tools.instructions --compare OLD.json   before and after

Each iteration of a loop is counted on three paths: the shortest, the longest, and the path of a full tile
with every feature. The table in tools/instructions/forms.py says how much work an iteration does, by which
these counts are divided. Prints the loops of kernels that are not in it. Needs nvdisasm, which the package
nvidia-cuda-nvdisasm has.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tools.instructions.cubins import find_nvdisasm, read_cubins, resources_of
from tools.instructions.disassembly import disassemble
from tools.instructions.forms import KERNELS
from tools.instructions.markdown import table
from tools.instructions.record import Listing, commit_of, list_kernels, read_record, write_record
from tools.instructions.report import comparison_tables, known, show
from tools.nvcc import ROOT, compile_cubins, find_nvcc

OPS = tuple(dict.fromkeys(kernel.op for kernel in KERNELS.values()))


def list_files(paths: Sequence[Path], architecture: str) -> list[Listing]:
    """Counts the kernels of libraries, objects and cubins."""
    nvdisasm, listings = find_nvdisasm(), []
    for path in paths:
        for cubin in read_cubins(path, int(architecture)):
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                file.write(cubin)
                file.flush()
                codes = disassemble(nvdisasm, Path(file.name))
            listings += list_kernels(codes, resources_of(cubin))
    return listings


def list_sources(sources: Sequence[Path], architecture: str) -> list[Listing]:
    """Compiles sources and counts their kernels."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("tools.instructions: nvcc is not installed; put it on PATH or set CUDA_HOME")
    find_nvdisasm()
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_cubins(nvcc, sources, [architecture], Path(folder))
        return list_files([one.cubin for one in compiled], architecture)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables; returns 1 if a file has no kernels."""
    parser = argparse.ArgumentParser(
        "tools.instructions", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, help="libraries, objects or cubins")
    parser.add_argument("--op", action="append", choices=OPS, help="compile only this operator; repeatable")
    parser.add_argument("--arch", default="90", help="architecture; default: %(default)s")
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    parser.add_argument("--loops", action="store_true", help="print the loops of every kernel")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    parser.add_argument("--compare", type=Path, help="counts to compare with")
    parser.add_argument("--markdown", action="store_true", help="with --compare: print a Markdown table")
    args = parser.parse_args(argv)
    if args.paths:
        try:
            listings = list_files(args.paths, args.arch)
        except (OSError, ValueError) as error:
            raise SystemExit(f"tools.instructions: {error}") from None
    else:
        sources = [s for op in args.op or OPS for s in sorted(ROOT.glob(f"csrc/kernels/{op}/**/*.cu"))]
        listings = list_sources(sources, args.arch)
    listings = [x for x in listings if args.kernel in x.name]
    console = Console(width=None if sys.stdout.isatty() else 200)
    if args.compare and args.markdown:
        print(table(read_record(args.compare)[1], known(listings)))
    elif args.compare:
        commit, old = read_record(args.compare)
        for one in comparison_tables(old, known(listings), commit):
            console.print(one)
    else:
        show(console, listings, args.loops)
    if args.json:
        write_record(args.json, known(listings), args.arch, commit_of())
    return 0 if listings else 1


if __name__ == "__main__":
    sys.exit(main())
