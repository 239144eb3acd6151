"""Reads what nvdisasm prints."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

LABEL = re.compile(r"(\.L_x_\d+):")
INSTRUCTION = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+\{?\s*(@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_]*(?:\.\w+)*)\s*([^;]*);"
)
TARGET = re.compile(r"`\((\.L_x_\d+)\)")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    Attributes:
        predicate: such as "@!P0", or "".
        name: opcode with its modifiers, such as "LDG.E.128".
        operands: text behind it.
    """

    predicate: str
    name: str
    operands: str

    @property
    def opcode(self) -> str:
        return self.name.split(".")[0]

    @property
    def is_divergent(self) -> bool:
        """Whether it is a branch that only threads of a divergent warp take."""
        return self.name.startswith("BRA.DIV")

    @property
    def is_conditional(self) -> bool:
        """Whether the next instruction can run too. A branch may have a predicate among its operands."""
        branch = self.opcode == "BRA" and re.match(r"!?U?P\d", self.operands)
        return bool(self.predicate or self.is_divergent or branch)


@dataclass
class Code:
    """Machine code of a kernel.

    Attributes:
        name: mangled name.
        instructions: instructions in order.
        labels: index of the instruction behind each label.
    """

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def target(self, branch: Instruction) -> int | None:
        found = TARGET.search(branch.operands)
        return self.labels.get(found[1]) if found else None


def parse(text: str) -> list[Code]:
    """Returns the kernels of a disassembly."""
    codes: list[Code] = []
    for line in text.splitlines():
        if found := re.match(r"\s*\.section\s+\.text\.([^,\s]+)", line):
            codes.append(Code(found[1]))
        elif not codes:
            continue
        elif found := LABEL.match(line.strip()):
            codes[-1].labels[found[1]] = len(codes[-1].instructions)
        elif found := INSTRUCTION.search(line):
            codes[-1].instructions.append(Instruction((found[2] or "").strip(), found[3], found[4].strip()))
    return codes


def disassemble(nvdisasm: str, cubin: Path) -> list[Code]:
    done = subprocess.run([nvdisasm, "-c", str(cubin)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"tools.instructions: {nvdisasm} cannot read {cubin}: {done.stderr.strip()}")
    return parse(done.stdout)
