"""Time and memory of every op, forward and backward, beside plain PyTorch.

python -m benchmarks.cpu.ops [--ops gated_rela selective_scan --threads 2 --rounds 20]

The cases are those of python_tests/cases. The forms in plain PyTorch are written as an experienced user would
write them, on dense batches. No speed is reported unless results and gradients agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import OURS, arguments, check_results, compare, record
from python_tests.cases import CASES, Case
from python_tests.cases.case import gradients

MAX_ERROR = 1e-3  # relative to the largest value


def make(variant: str, case: Case, threads: int) -> Callable[[], dict[str, Tensor]]:
    """A function that runs one forward and backward of our op or of a form, and returns the results."""
    torch.set_num_threads(threads)
    x = case.operands()
    if variant == OURS:
        return lambda: case.results(x)
    return lambda: gradients({"y": case.plain(variant, x)}, x)


def measure(case: Case, threads: int, rounds: int) -> dict[str, Any]:
    """The record of one case."""
    ours = make(OURS, case, threads)()
    errors = [
        check_results(f"{case}, {form}", make(form, case, threads)(), ours, MAX_ERROR) for form in case.forms
    ]
    small = replace(case, lengths=(8, 8))
    title = f"{case}, {threads} threads: largest error {max(errors):.1e}"
    variants = (OURS, *case.forms)
    measured = compare(title, make, variants, (case, threads), (small, threads), rounds)
    return {"case": str(case), "threads": threads, "max_relative_error": max(errors)} | measured


def main() -> None:
    parser = arguments(__doc__, threads=2, rounds=20)
    names = [op.op for op in CASES]
    parser.add_argument("--ops", nargs="+", choices=names, default=names, help="default: all")
    args = parser.parse_args()
    cases = [case for op in CASES if op.op in args.ops for case in op.cpu_sizes()]
    record("ops", vars(args), [measure(case, args.threads, args.rounds) for case in cases])


if __name__ == "__main__":
    main()
