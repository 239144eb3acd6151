"""Variants of the CUDA kernels: values of the macros in csrc/kernels/<op>/tuning.h."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tools.nvcc import ROOT

KERNELS = ROOT / "csrc" / "kernels"
# Values to try, besides the default, by operator and macro without its prefix RECGRELA_<OP>_.
VALUES: dict[str, dict[str, tuple[int, ...]]] = {
    "gated_rela": {
        "STEP_BYTES": (512, 1024, 2048),
        "FORWARD_BLOCKS": (6, 8, 10),
        "BACKWARD_BLOCKS": (4, 5, 6, 8),
        "WIDE_ROWS": (32, 64),
    },
    "selective_scan": {
        "FORWARD_ROWS": (2, 4, 8),
        "FORWARD_RESIDENT": (512, 640, 768),
        "BACKWARD_CHANNELS": (2, 4),
    },
    "linear_scan": {
        "THREADS": (64, 128, 256),
        "BATCH_REGISTERS": (16, 32, 48),
        "WARPS": (8, 16, 24),
    },
    "causal_conv1d": {
        "THREADS": (64, 128, 256),
        "ROWS": (2, 4, 8),
        "FORWARD_WARPS": (12, 16, 24),
        "BACKWARD_WARPS": (8, 12, 16),
    },
}


@dataclass(frozen=True)
class Variant:
    """Kernels of an operator with one macro changed.

    Attributes:
        op: operator.
        macros: values of macros; none for the default.
    """

    op: str
    macros: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        prefix = f"RECGRELA_{self.op.upper()}_"
        return ",".join(f"{m.removeprefix(prefix)}={value}" for m, value in self.macros) or "default"

    @property
    def defines(self) -> list[str]:
        """Compiler options."""
        return [f"-D{macro}={value}" for macro, value in self.macros]


def defaults(op: str) -> dict[str, int]:
    """The macros of an operator's tuning.h and their values."""
    path = KERNELS / op / "tuning.h"
    text = path.read_text() if path.exists() else ""
    return {name: int(value) for name, value in re.findall(r"#ifndef (\w+)\n#define \1 (\d+)\n", text)}


def variants(op: str, values: Mapping[str, tuple[int, ...]] | None = None) -> list[Variant]:
    """The default, then every other value of each macro with the others at their defaults."""
    tried = VALUES[op] if values is None else values
    found = [Variant(op)]
    for macro, default in defaults(op).items():
        for value in tried.get(macro.removeprefix(f"RECGRELA_{op.upper()}_"), ()):
            if value != default:
                found.append(Variant(op, ((macro, value),)))
    return found
