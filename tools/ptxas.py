"""Lists registers, stack and spills of every CUDA kernel; fails if one spills or has a stack. Needs no GPU.

python -m tools.ptxas                  compiles all .cu files of csrc/kernels with nvcc, MAX_JOBS at a time
python -m tools.ptxas --report PATH    reads what nvcc -Xptxas -v printed: a file, or a folder of *.log

The environment variable RECGRELA_PTXAS_REPORT is the default of --report.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.nvcc import ROOT, compile_cubins, demangle, find_nvcc

ARCHITECTURES = ("80", "90")
# Kernels that may use the stack: for the arguments of __assert_fail, only if a check fails.
STACK_ALLOWED = ("check_sequences_kernel",)


@dataclass
class Kernel:
    """Resources of a kernel on one architecture, as ptxas reports them."""

    name: str
    architecture: str
    registers: int = 0
    shared: int = 0  # bytes, static
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0

    @property
    def fault(self) -> str:
        if self.spill_stores or self.spill_loads:
            return "spills"
        if self.stack and not any(allowed in self.name for allowed in STACK_ALLOWED):
            return "stack"
        return ""


def parse(report: str) -> list[Kernel]:
    """Returns the kernels of a report, under their mangled names."""
    kernels: list[Kernel] = []
    for line in report.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            kernels.append(Kernel(*found.groups()))
        elif not kernels:
            continue
        # A function that is not inlined has a line of its own, which is counted for the kernel before it.
        elif "bytes stack frame" in line:
            stack, stores, loads = map(int, re.findall(r"(\d+) bytes", line))
            kernel = kernels[-1]
            kernel.stack = max(kernel.stack, stack)
            kernel.spill_stores += stores
            kernel.spill_loads += loads
        elif found := re.search(r"Used (\d+) registers", line):
            kernels[-1].registers = int(found[1])
            if found := re.search(r"(\d+) bytes smem", line):
                kernels[-1].shared = int(found[1])
            if found := re.search(r"(\d+) bytes cumulative stack", line):
                kernels[-1].stack = max(kernels[-1].stack, int(found[1]))
    return kernels


def compile_all(nvcc: str) -> str:
    """Compiles all kernels and returns what ptxas reports."""
    with tempfile.TemporaryDirectory() as folder:
        sources = sorted(ROOT.glob("csrc/kernels/**/*.cu"))
        compiled = compile_cubins(nvcc, sources, ARCHITECTURES, Path(folder))
        return "\n".join(one.report for one in compiled)


def table(kernels: Sequence[Kernel]) -> str:
    """Returns one line per kernel and architecture."""
    rows = [("kernel", "arch", "registers", "shared", "stack", "spill stores", "spill loads", "")]
    for k in sorted(kernels, key=lambda k: (k.name, k.architecture)):
        numbers = (k.registers, k.shared, k.stack, k.spill_stores, k.spill_loads)
        rows.append((k.name, k.architecture, *map(str, numbers), k.fault.upper()))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, arch, *numbers, fault in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[2:-1], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), arch.ljust(widths[1]), *cells, fault]).rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if a kernel spills or has a stack, or if there are no kernels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--report", default=os.environ.get("RECGRELA_PTXAS_REPORT"))
    args = parser.parse_args(argv)
    if args.report:
        path = Path(args.report)
        files = [path] if path.is_file() else sorted(path.glob("*.log"))
        report = "\n".join(file.read_text(errors="replace") for file in files)
    elif nvcc := find_nvcc():
        report = compile_all(nvcc)
    else:
        raise SystemExit("tools.ptxas: nvcc is not installed; put it on PATH or set CUDA_HOME")
    kernels = parse(report)
    for kernel, name in zip(kernels, demangle([kernel.name for kernel in kernels]), strict=True):
        kernel.name = name
    # Several files may have the same kernel; keep one, and one with a fault if there is any.
    unique = {(k.name, k.architecture): k for k in sorted(kernels, key=lambda k: bool(k.fault))}
    print(table(list(unique.values())))
    faults = [k for k in unique.values() if k.fault]
    print(f"{len(unique)} kernels, {len(faults)} with spills or a stack")
    return 1 if faults or not kernels else 0  # an empty report fails


if __name__ == "__main__":
    sys.exit(main())
