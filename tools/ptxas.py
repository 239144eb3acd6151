"""Lists registers, stack and spills of every CUDA kernel; fails if one spills or has a stack. Needs no GPU.

python -m tools.ptxas                  compiles all .cu files of csrc/kernels with nvcc, MAX_JOBS at a time
python -m tools.ptxas --report PATH    reads what nvcc -Xptxas -v printed: a file, or a folder of *.log

The environment variable RECGRELA_PTXAS_REPORT is the default of --report.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
from build_backend.toolkit import find_toolkits  # noqa: E402

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


def shorten(name: str) -> str:
    """Returns a demangled name without namespaces, result and arguments."""
    name = re.sub(r"\(anonymous namespace\)::|recgrela::cuda::|^void ", "", name)
    depth = 0
    for i, letter in enumerate(name):
        if letter == "(" and depth == 0:
            return name[:i]
        depth += (letter == "<") - (letter == ">")
    return name


def demangle(kernels: list[Kernel]) -> None:
    """Replaces mangled names by short ones, if there is a demangler."""
    if tool := shutil.which("cu++filt") or shutil.which("c++filt"):
        names = "\n".join(kernel.name for kernel in kernels)
        output = subprocess.run([tool], input=names, capture_output=True, text=True, check=True).stdout
        for kernel, name in zip(kernels, output.splitlines(), strict=True):
            kernel.name = shorten(name)


def find_nvcc() -> str | None:
    """Returns the nvcc that a build would use."""
    toolkits = find_toolkits()
    return str(toolkits[0].nvcc) if toolkits else None


def compile_all(nvcc: str) -> str:
    """Compiles all kernels and returns what ptxas reports."""

    def job(source: Path, architecture: str, folder: str) -> str:
        target = Path(folder, f"{source.parent.name}_{source.stem}.{architecture}.cubin")
        code = f"arch=compute_{architecture},code=sm_{architecture}"
        command = [nvcc, "-O3", "-std=c++17", "-Xptxas", "-v", f"-I{ROOT / 'csrc'}", "-gencode", code]
        command += ["-cubin", str(source), "-o", str(target)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}")
        return done.stdout

    workers = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        sources = sorted(ROOT.glob("csrc/kernels/**/*.cu"))
        jobs = [pool.submit(job, source, arch, folder) for source in sources for arch in ARCHITECTURES]
        return "\n".join(done.result() for done in jobs)


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
    demangle(kernels)
    # Several files may have the same kernel; keep one, and one with a fault if there is any.
    unique = {(k.name, k.architecture): k for k in sorted(kernels, key=lambda k: bool(k.fault))}
    print(table(list(unique.values())))
    faults = [k for k in unique.values() if k.fault]
    print(f"{len(unique)} kernels, {len(faults)} with spills or a stack")
    return 1 if faults or not kernels else 0  # an empty report fails


if __name__ == "__main__":
    sys.exit(main())
