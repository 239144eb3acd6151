"""Builds variants of the CUDA kernels, checks and times them on a GPU, and names the fastest.

python -m benchmarks.gpu.variants                builds what is out of date, then times everything in under 90
s python -m benchmarks.gpu.variants --build-only   needs no GPU; build/variants can be carried to a machine
with one python -m benchmarks.gpu.variants --simt         runs tiny sizes on the CPU: the times tell nothing

A variant changes one macro of csrc/kernels/<op>/tuning.h, or a few where one alone would spill registers;
benchmarks/gpu/variants/knobs.py lists the values. Every variant is a shared library with the units of one
operator. Variants are timed in turn, and times are medians.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.gpu.variants.build import Builder, gpu_compiler, simt_compiler
from benchmarks.gpu.variants.knobs import VALUES, Variant, variants
from benchmarks.gpu.variants.results import Row, advice, record, table_of
from tools.instructions.record import commit_of

DTYPES = ("float32", "bfloat16", "float16")
NO_GPU = 77  # exit code of the program
LIMIT = 90  # seconds for all operators


def architecture() -> str:
    """The architecture of the GPU, such as "90"; 90 without one."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "90"
    return done.stdout.split("\n")[0].strip().replace(".", "")


def run_op(
    builder: Builder, of_op: Sequence[Variant], dtype: str, args: argparse.Namespace, limit: float
) -> list[Row]:
    """Checks and times the variants of an operator for one element type, within a limit of seconds.

    Raises:
        SystemExit: there is no GPU, a kernel fails, or the limit is exceeded.
    """
    op = of_op[0].op
    libraries = [f"{variant.name}={builder.library(variant)}" for variant in of_op]
    command = [str(builder.program), op, dtype, str(args.rounds), str(args.batch), *libraries]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        what = f"the limit of {args.limit} s ended {op} {dtype}; name fewer with --op or --dtype"
        raise SystemExit(f"benchmarks.gpu.variants: {what}") from None
    if done.returncode == NO_GPU:
        raise SystemExit("benchmarks.gpu.variants: there is no GPU; --build-only builds without one")
    if done.returncode:
        raise SystemExit(f"benchmarks.gpu.variants: {op} {dtype} failed with {done.returncode}")
    return [Row(op=op, **json.loads(line)) for line in done.stdout.splitlines()]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "benchmarks.gpu.variants", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--op", nargs="+", choices=list(VALUES), default=list(VALUES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES[:2]))
    parser.add_argument(
        "--variants", type=int, default=10, help="of an operator, at most; default: %(default)s"
    )
    parser.add_argument("--arch", help="architecture, such as 90; default: that of the GPU")
    parser.add_argument("--build-only", action="store_true", help="run nothing")
    parser.add_argument("--simt", action="store_true", help="run on the CPU")
    parser.add_argument("--rounds", type=int, help="times of each variant; default: 15")
    parser.add_argument("--batch", type=int, help="sequences; default: as measured before")
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds; default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the times to this file")
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (1 if args.simt else 15)
    args.batch = args.batch or (2 if args.simt else 0)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Builds and times; returns 1 if a variant's results differ from the default's."""
    args = parse(argv)
    compiler = simt_compiler() if args.simt else gpu_compiler(args.arch or architecture())
    one_type = args.dtype[0] if len(args.dtype) == 1 else None
    builder = Builder(compiler, one_type)
    of_ops = {op: variants(op)[: args.variants] for op in args.op}
    begin = time.monotonic()
    builder.build([variant for of_op in of_ops.values() for variant in of_op])
    names = ", ".join(f"{op} {len(of_op)}" for op, of_op in of_ops.items())
    print(f"built variants ({names}) in {time.monotonic() - begin:.0f} s: {compiler.folder}", flush=True)
    if args.build_only:
        return 0
    begin = time.monotonic()
    rows: list[Row] = []
    for of_op in of_ops.values():
        for dtype in args.dtype:
            left = args.limit - (time.monotonic() - begin)
            rows += run_op(builder, of_op, dtype, args, max(1.0, left))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table_of(rows))
    for line in advice(rows):
        console.print(line, highlight=False, soft_wrap=True)
    print(f"timed in {time.monotonic() - begin:.0f} s")
    if args.json:
        where = "SIMT host" if args.simt else f"sm_{args.arch or architecture()}"
        facts = {"commit": commit_of(), "device": where, "batch": args.batch, "rounds": args.rounds}
        args.json.write_text(json.dumps(record(rows, facts), indent=2) + "\n")
    return 0 if all(row.agrees for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
