"""Variants of the CUDA kernels: values of the macros in csrc/kernels/<op>/tuning.h."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tools.tuning import defaults, macro

# Values to try, by operator and macro without its prefix RECGRELA_<OP>_. None of them spills registers.
VALUES: dict[str, dict[str, tuple[int, ...]]] = {
    "gated_rela": {
        "STEP_BYTES": (512, 1024, 2048),
        "FORWARD_BLOCKS": (6, 8),
        "BACKWARD_BLOCKS": (4, 6),
        "WIDE_ROWS_64": (32, 48, 64),
        "WIDE_ROWS_128": (32, 48, 64),
    },
    "selective_scan": {
        "FORWARD_ROWS": (2, 4),
        "FORWARD_RESIDENT": (384, 512),
        "BACKWARD_CHANNELS": (2, 4),
    },
    "linear_scan": {
        "THREADS": (64, 128, 256),
        "BATCH_REGISTERS": (16, 32),
        "WARPS": (8, 16),
    },
    "causal_conv1d": {
        "THREADS": (64, 128, 256),
        "FORWARD_WARPS": (12, 16),
        "BACKWARD_WARPS": (8, 12),
    },
}
# Values that spill registers unless other macros have these values too.
COMBINATIONS: dict[str, tuple[dict[str, int], ...]] = {
    "linear_scan": ({"BATCH_REGISTERS": 48, "WARPS": 8},),
    "causal_conv1d": ({"ROWS": 8, "FORWARD_WARPS": 12, "BACKWARD_WARPS": 8},),
}


@dataclass(frozen=True)
class Variant:
    """Kernels of an operator with one macro or a combination changed.

    Attributes:
        op: operator.
        macros: values of macros, without the prefix of their names; none for the default.
    """

    op: str
    macros: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.macros) or "default"

    @property
    def defines(self) -> list[str]:
        """Compiler options."""
        return [f"-D{macro(self.op, name)}={value}" for name, value in self.macros]


def variants(
    op: str,
    values: Mapping[str, tuple[int, ...]] | None = None,
    combinations: Sequence[Mapping[str, int]] | None = None,
) -> list[Variant]:
    """The default, every other value of each macro with the others at their defaults, and combinations."""
    tried = VALUES[op] if values is None else values
    together = COMBINATIONS.get(op, ()) if combinations is None else combinations
    found = [Variant(op)]
    for name, default in defaults(op).items():
        found += [Variant(op, ((name, value),)) for value in tried.get(name, ()) if value != default]
    return found + [Variant(op, tuple(macros.items())) for macros in together]
