"""Kinds of machine instructions, and the pipes that limit them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tools.instructions.disassembly import Instruction

KINDS = ("math", "tensor", "memory", "integer", "control")
# Pipes with less than one instruction a cycle and scheduler, and accesses to global memory.
PIPES = ("special", "tensor pipe", "shared", "global")

TENSOR = ("HMMA", "IMMA", "DMMA", "BMMA", "HGMMA", "IGMMA", "QGMMA", "WARPGROUP")
SPECIAL = frozenset(("MUFU", "F2F", "F2I", "I2F", "FRND"))
SHARED = frozenset(("LDS", "STS", "LDSM", "STSM", "SHFL", "ATOMS", "LDGSTS", "MOVM"))
GLOBAL = frozenset(("LDG", "STG", "LDGSTS", "UBLKCP", "UTMALDG", "UTMASTG", "RED", "ATOMG"))
# Arithmetic on numbers with a fraction, and conversions of them.
MATH = SPECIAL | frozenset(
    (
        *("FADD", "FMUL", "FFMA", "FMNMX", "FSEL", "FSETP", "FSET", "FCHK", "FSWZADD", "F2FP", "I2FP"),
        *("HADD2", "HMUL2", "HFMA2", "HMNMX2", "HSET2", "HSETP2", "DADD", "DMUL", "DFMA", "DSETP"),
    )
)
# Every access to memory, shuffles, loads of parameters, and waits for copies.
MEMORY = (
    SHARED
    | GLOBAL
    | frozenset(
        (
            *(
                "LD",
                "ST",
                "LDL",
                "STL",
                "LDC",
                "ULDC",
                "LDGDEPBAR",
                "DEPBAR",
                "ATOM",
                "REDG",
                "REDUX",
                "MATCH",
            ),
            *("MEMBAR", "FENCE", "ERRBAR", "CCTL", "SYNCS", "ARRIVES", "UBLKPF", "UTMACMDFLUSH"),
        )
    )
)
CONTROL = frozenset(
    (
        *("BRA", "BRX", "JMP", "BSSY", "BSYNC", "BREAK", "EXIT", "BAR", "WARPSYNC", "NOP", "CALL", "RET"),
        *("YIELD", "VOTE", "VOTEU", "NANOSLEEP", "BMOV", "KILL", "ENDCOLLECTIVE", "LEPC", "ACQBULK"),
    )
)


def kind_of(instruction: Instruction) -> str:
    """Returns the kind; moves, addresses, predicates and conversions of integers are "integer"."""
    opcode = instruction.opcode
    if opcode.startswith(TENSOR):
        return "tensor"
    if opcode in MATH:
        # HFMA2.MMA R1, -RZ, RZ, 0, 0 loads a constant.
        return "integer" if opcode == "HFMA2" and "-RZ, RZ" in instruction.operands else "math"
    return "memory" if opcode in MEMORY else "control" if opcode in CONTROL else "integer"


def pipe_of(instruction: Instruction) -> Iterator[str]:
    """Yields the pipes of an instruction; none for those that every scheduler issues at one a cycle."""
    opcode = instruction.opcode
    if opcode in SPECIAL:
        yield "special"
    if opcode.startswith(TENSOR):
        yield "tensor pipe"
    if opcode in SHARED:
        yield "shared"
    if opcode in GLOBAL:
        yield "global"


def work_of(instruction: Instruction) -> int:
    """Work of an instruction: bytes in global memory, or 16 for a product or a special function."""
    opcode = instruction.opcode
    if opcode in SPECIAL or opcode.startswith(TENSOR):
        return 16
    if opcode not in GLOBAL:
        return 0
    found = re.search(r"\.[US]?(8|16|64|128)(?=\.|$)", instruction.name)
    return int(found[1]) // 8 if found else 4
