"""Estimates the device time of operators on an H200 from counted instructions and bytes, without a GPU.

python -m tools.gpu_estimate               the calls that were measured, beside their times
python -m tools.gpu_estimate --predicted   the same, with the constants from before these measurements

A call takes the longer of two times. Its warp instructions (python -m tools.instructions) are issued by the
warps that the registers of a multiprocessor hold: each can issue in a cycle with a constant probability, and
a scheduler issues if one of its warps can. Its operands and results are moved at a constant share of a copy's
bandwidth. Both constants are fitted to measured calls; benchmarks/results/h200_a0aae5b.json has the current
ones, and h200.json those of the kernels before.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.instructions.record import KernelCounts, read_record
from tools.nvcc import ROOT

RESULTS = ROOT / "benchmarks" / "results"
RECORD = RESULTS / "instructions.json"
FIGURES, FIGURES_BEFORE = RESULTS / "h200_a0aae5b.json", RESULTS / "h200.json"
# The constants that fit() tries.
READY = [i / 200 for i in range(16, 61)]
BYTE_SHARES = [i / 50 for i in range(15, 51)]
# Numbers of tensors of rows that a forward and a backward read and write.
TENSORS = {
    "gated_rela": (5, 9),
    "causal_conv1d": (2, 3),
    "linear_scan, constant": (2, 3),
    "linear_scan, each step": (3, 5),
    "selective_scan": (4, 7),
}


@dataclass(frozen=True)
class Call:
    """A call of an operator.

    Attributes:
        op, direction, variant, dtype: see tools.instructions.kernels.
        form: "causal", "bidirectional" or "".
        batch, length, width: sequences, their rows, and the channels of a row.
        us: measured microseconds; 0 if it was not measured.
    """

    op: str
    direction: str
    variant: str
    dtype: str
    form: str
    batch: int
    length: int
    width: int
    us: float = 0.0

    @property
    def bytes(self) -> int:
        """Bytes of the operands and results that have rows."""
        suffix = f", {self.variant.split(', ')[1]}" if self.op == "linear_scan" else ""
        tensors = TENSORS[self.op + suffix][self.direction == "backward"]
        size = (4 if self.dtype == "float32" else 2) * (2 if self.variant.startswith("complex") else 1)
        return tensors * self.batch * self.length * self.width * size

    def kernels(self, record: Iterable[KernelCounts]) -> list[KernelCounts]:
        """The kernels of a record that the call launches for rows of sequences that are not cut."""
        wanted = ("always", self.form)
        mine = (self.op, self.direction, self.variant, self.dtype)
        return [k for k in record if (k.op, k.direction, k.variant, k.dtype) == mine and k.when in wanted]

    def instructions(self, kernel: KernelCounts) -> float:
        """Warp instructions of one of its kernels."""
        if self.op != "gated_rela":
            return self.batch * self.length * self.width / 32 * kernel.total
        warps = self.batch * self.width / 16
        return warps * (-(-self.length // 16) * kernel.total + kernel.once)


@dataclass(frozen=True)
class Times:
    """Estimated microseconds of a call: by its instructions, and by its bytes."""

    by_instructions: float
    by_bytes: float

    @property
    def us(self) -> float:
        return max(self.by_instructions, self.by_bytes)


def issue_share(warps: float, ready: float) -> float:
    """Share of the issue slots that warps of a multiprocessor fill, if each is ready so often."""
    return 1 - (1 - ready) ** (warps / 4)


class Gpu:
    """The GPU of the figures.

    Args:
        path: figures with measured calls.
        constants: figures whose constants are used; None: those of `path`.

    Attributes:
        figures: the content of the file.
    """

    def __init__(self, path: Path = FIGURES, constants: Path | None = None) -> None:
        self.figures: dict[str, Any] = json.loads(path.read_text())
        machine = (
            self.figures["machine"] if constants is None else json.loads(constants.read_text())["machine"]
        )
        self.cycles_per_us = machine["multiprocessors"] * machine["clock_ghz"] * 1e3
        self.bytes_per_us = machine["copy_tb_s"] * 1e6
        self.ready, self.byte_share = machine["ready"][1], machine["call_byte_share"]

    @property
    def measured(self) -> list[Call]:
        return [Call(**call) for call in self.figures["calls"]]

    def times(self, call: Call, record: Sequence[KernelCounts]) -> Times | None:
        """Estimates a call with the kernels of a record; None if it has none for the call."""
        kernels = call.kernels(record)
        if not kernels:
            return None
        rates = (4 * issue_share(kernel.warps, self.ready) * self.cycles_per_us for kernel in kernels)
        issued = sum(call.instructions(k) / rate for k, rate in zip(kernels, rates, strict=True))
        return Times(issued, call.bytes / self.bytes_per_us / self.byte_share)


def errors(gpu: Gpu, record: Sequence[KernelCounts]) -> dict[Call, float]:
    """Relative errors of the estimates of the measured calls."""
    found = {call: gpu.times(call, record) for call in gpu.measured}
    return {call: times.us / call.us - 1 for call, times in found.items() if times}


def fit(gpu: Gpu, record: Sequence[KernelCounts]) -> tuple[float, float]:
    """The probability and the share of the bandwidth with the smallest mean error of the measured calls."""

    def mean_error(constants: tuple[float, float]) -> float:
        gpu.ready, gpu.byte_share = constants
        return statistics.fmean(map(abs, errors(gpu, record).values()))

    kept = gpu.ready, gpu.byte_share
    best = min(itertools.product(READY, BYTE_SHARES), key=mean_error)
    gpu.ready, gpu.byte_share = kept
    return best


def table_of(gpu: Gpu, commit: str, record: Sequence[KernelCounts]) -> Table:
    """The measured calls with their estimates."""
    table = Table(title=f"estimates for an {gpu.figures['machine']['gpu']}, kernels of {commit}")
    table.add_column("call", no_wrap=True)
    measured = f"measured at {gpu.figures['commit']}"
    for column in ("instructions M", "us by them", "us by bytes", "estimated us", measured, "off"):
        table.add_column(column, justify="right")
    for call in gpu.measured:
        name = f"{call.op} {call.direction}, {call.variant}, {call.form}, {call.dtype}".replace(", ,", ",")
        times = gpu.times(call, record)
        if times is None:
            table.add_row(name, *[""] * 4, f"{call.us:,.0f}")
            continue
        number = sum(map(call.instructions, call.kernels(record))) / 1e6
        values = (number, times.by_instructions, times.by_bytes, times.us, call.us)
        table.add_row(name, *(f"{value:,.0f}" for value in values), f"{times.us / call.us - 1:+.0%}")
    return table


def markdown_of(before: Gpu, now: Gpu, record: Sequence[KernelCounts]) -> str:
    """The table of docs/speed.md: times before, the estimates of `now` with a record, and its times."""
    dtypes = ("float32", "bfloat16")
    titles = [f"{dtype} {what}" for dtype in dtypes for what in ("before", "predicted", "now")]
    lines = [f"| us | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
    old, new = ({replace(call, us=0.0): call.us for call in gpu.measured} for gpu in (before, now))
    for call in dict.fromkeys(replace(call, dtype=dtypes[0]) for call in new):
        cells: list[str] = []
        for dtype in dtypes:
            mine = replace(call, dtype=dtype)
            times = now.times(mine, record) if mine in new else None
            values = (old.get(mine), times and times.us, new.get(mine))
            cells += ["" if value is None else f"{value:,.0f}" for value in values]
        name = ", ".join(filter(None, (call.direction, call.variant, call.form)))
        lines.append(f"| `{call.op}` {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        "tools.gpu_estimate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--record", type=Path, default=RECORD, help="counts; default: the current record")
    parser.add_argument("--predicted", action="store_true", help="use the constants from before")
    args = parser.parse_args(argv)
    gpu = Gpu(constants=FIGURES_BEFORE if args.predicted else None)
    commit, record = read_record(args.record)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print("Estimates from counts, beside measured times.", table_of(gpu, commit, record))
    off = [abs(error) for error in errors(gpu, record).values()]
    console.print(f"off by {statistics.median(off):.0%} (median) and {max(off):.0%} (most)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
