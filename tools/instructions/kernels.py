"""Kernels by their template arguments, and the work of an iteration of their loops.

The loops of a kernel are numbered in the order of its machine code, each before its inner loops; 0 is the
kernel. How many loops a compiled kernel has tells which form it has. If none fits, its loops are printed
without division.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

CHUNK = "chunk of 16 rows x 16 channels"
ROW = "row of 32 channels"
DTYPES = {"float": "float32", "__half": "float16", "__nv_bfloat16": "bfloat16"}


@dataclass(frozen=True)
class Instance:
    """A compiled kernel.

    Attributes:
        name: name without template arguments.
        dtype: element type.
        sizes: other template arguments.
    """

    name: str
    dtype: str
    sizes: tuple[int, ...]

    @property
    def element_size(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def size(self) -> int:
        """The first of them: head width, lanes of a channel, or kernel size."""
        return self.sizes[0]

    def __str__(self) -> str:
        return f"{self.name}<{', '.join(map(str, (self.dtype, *self.sizes)))}>"


def instance_of(name: str) -> Instance | None:
    """Reads a demangled name; None if its first template argument is no element type.

    The arguments of a template that is an argument count as the kernel's own.
    """
    found = re.fullmatch(r"([\w:]+)<([^,<>]+)(?:, (.*))?>", name)
    if not found or found[2] not in DTYPES:
        return None
    values = {"true": 1, "false": 0}
    text = re.sub(r"[\w:]+<|>|\([\w:]+\)", "", found[3] or "")
    arguments = [x.strip() for x in text.split(",") if x.strip()]
    if not all(x in values or x.isdigit() for x in arguments):
        return None
    return Instance(
        found[1], DTYPES[found[2]], tuple(values[x] if x in values else int(x) for x in arguments)
    )


Share = Callable[[Instance], float]


@dataclass(frozen=True)
class Form:
    """A shape of a kernel's loops.

    Attributes:
        loops: number of loops.
        iterations: iterations of a loop for one unit of work, by the number of the loop.
        limits: accesses to global memory in an iteration, at most; excludes paths that few iterations take.
        once: number of the loop over units of work, such as sequences; 0 if a warp has one.
    """

    loops: int
    iterations: Mapping[int, Share]
    limits: Mapping[int, Callable[[Instance], int]] = field(default_factory=dict)
    once: int = 0


@dataclass(frozen=True)
class Kernel:
    """What is known about a kernel.

    Attributes:
        op, direction: operator, and "forward" or "backward".
        unit: the work that counts are for.
        variant: the calls that an instance serves.
        forms: shapes that the compiler gives it.
        parts: units of work of a warp, by which the counts of a warp are divided.
        when: "always", "causal" or "bidirectional" (in this form of gated_rela), or "cut" (only if sequences
            are cut into segments).
    """

    op: str
    direction: str
    unit: str
    variant: Callable[[Instance], str]
    forms: tuple[Form, ...]
    parts: Share = lambda instance: 1.0
    when: Callable[[Instance], str] = lambda instance: "always"
