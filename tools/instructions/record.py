"""Counts of compiled kernels, and their record."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.instructions.cubins import Resources
from tools.instructions.disassembly import Code
from tools.instructions.forms import KERNELS
from tools.instructions.graph import blocks_of, loops_of
from tools.instructions.kernels import Form, Instance, instance_of
from tools.instructions.kinds import KINDS
from tools.instructions.paths import LoopCounts, count, total
from tools.nvcc import ROOT, demangle

PIPES = ("special", "shared", "global")
REGISTERS, MAX_WARPS = 65536, 64  # of a multiprocessor


@dataclass(frozen=True)
class KernelCounts:
    """Instructions of a kernel for one unit of work, on the path of full tiles with every feature.

    Attributes:
        op, direction, variant, when, kernel, dtype, sizes, unit: see tools.instructions.kernels.
        registers, threads: of a thread, and of a block.
        math, tensor, memory, integer, control: warp instructions of a unit by kind.
        special, shared, global_: those of them that need these pipes.
        once: warp instructions outside of the loops that are counted: those of a warp, divided by the units
            that it processes at a time.
    """

    op: str
    direction: str
    variant: str
    when: str
    kernel: str
    dtype: str
    sizes: tuple[int, ...]
    unit: str
    registers: int
    threads: int
    math: float
    tensor: float
    memory: float
    integer: float
    control: float
    special: float
    shared: float
    global_: float
    once: int

    @property
    def total(self) -> float:
        return self.math + self.tensor + self.memory + self.integer + self.control

    @property
    def warps(self) -> int:
        """Warps that the registers of a multiprocessor hold, at most 64. Shared memory may hold fewer."""
        of_block = max(1, self.threads // 32)
        of_registers = REGISTERS // (32 * 8 * -(-self.registers // 8))
        return min(MAX_WARPS, max(1, of_registers // of_block) * of_block)

    @property
    def key(self) -> tuple[str, str, tuple[int, ...]]:
        return self.kernel, self.dtype, self.sizes


@dataclass(frozen=True)
class Listing:
    """A kernel and its loops.

    Attributes:
        name: short name.
        resources: registers and threads.
        loops: the kernel, and every loop inside.
        counts: instructions of a unit of work; None if the kernel or the form of its loops is unknown.
    """

    name: str
    resources: Resources
    loops: Sequence[LoopCounts]
    counts: KernelCounts | None


def forms_of(instance: Instance, loops: int) -> list[Form]:
    """The forms with this number of loops."""
    kernel = KERNELS.get(instance.name)
    return [form for form in kernel.forms if form.loops == loops] if kernel else []


def list_kernels(codes: Sequence[Code], resources: Mapping[str, Resources]) -> list[Listing]:
    """Counts kernels, whose resources are given by their mangled names."""
    names = demangle([code.name for code in codes])
    return [
        _listing(code, name, resources.get(code.name, Resources()))
        for code, name in zip(codes, names, strict=True)
    ]


def _listing(code: Code, name: str, resources: Resources) -> Listing:
    instance = instance_of(name)
    number = sum(1 for _ in loops_of(blocks_of(code)).nest()) - 1
    for form in forms_of(instance, number) if instance else ():
        assert instance is not None
        loops = list(count(code, {i: limit(instance) for i, limit in form.limits.items()}).nest())
        if hottest(loops) in form.iterations:
            return Listing(name, resources, loops, divide(instance, form, resources, loops))
    return Listing(name, resources, list(count(code).nest()), None)


def hottest(loops: Sequence[LoopCounts]) -> int:
    """Number of the loop with the most arithmetic, which the form of a kernel must count."""
    return max(range(1, len(loops)), key=lambda i: loops[i].full["math"] + loops[i].full["tensor"], default=0)


def divide(instance: Instance, form: Form, resources: Resources, loops: Sequence[LoopCounts]) -> KernelCounts:
    """Returns the counts of a unit of work."""
    kernel = KERNELS[instance.name]
    parts = kernel.parts(instance)
    unit: Counter[str] = Counter()
    for i, iterations in form.iterations.items():
        for key, value in loops[i].full.items():
            unit[key] += value * iterations(instance) / parts  # type: ignore[assignment]
    by_kind = {kind: round(float(unit[kind]), 2) for kind in KINDS}
    special, shared, accesses = (round(float(unit[pipe]), 2) for pipe in PIPES)
    return KernelCounts(
        kernel.op,
        kernel.direction,
        kernel.variant(instance),
        kernel.when(instance),
        instance.name,
        instance.dtype,
        instance.sizes,
        kernel.unit,
        resources.registers,
        resources.threads,
        **by_kind,
        special=special,
        shared=shared,
        global_=accesses,
        once=round(total(loops[form.once].full) / parts),
    )


def commit_of(root: Path = ROOT) -> str:
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def write_record(path: Path, kernels: Iterable[KernelCounts], architecture: str, commit: str) -> None:
    """Writes a record with one line for each kernel."""
    lines = ",\n    ".join(json.dumps(asdict(kernel)) for kernel in kernels)
    head = json.dumps({"counts": "machine code", "commit": commit, "architecture": f"sm_{architecture}"})
    path.write_text(f'{head[:-1]}, "kernels": [\n    {lines}\n]}}\n')


def read_record(path: Path) -> tuple[str, list[KernelCounts]]:
    """Returns the commit of a record and its kernels."""
    record: dict[str, Any] = json.loads(path.read_text())
    kernels = [KernelCounts(**{**kernel, "sizes": tuple(kernel["sizes"])}) for kernel in record["kernels"]]
    return record["commit"], kernels
