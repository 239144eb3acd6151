"""Macros in csrc/kernels/<op>/tuning.h: sizes of the CUDA kernels that only a measurement can decide."""

from __future__ import annotations

import re

from tools.nvcc import ROOT

KERNELS = ROOT / "csrc" / "kernels"


def macro(op: str, name: str) -> str:
    """The whole name of a macro of an operator."""
    return f"RECGRELA_{op.upper()}_{name}"


def defaults(op: str) -> dict[str, int]:
    """The macros of an operator and their default values, by their names without the prefix."""
    path = KERNELS / op / "tuning.h"
    text = path.read_text() if path.exists() else ""
    prefix = macro(op, "")
    found = re.findall(r"#ifndef (\w+)\n#define \1 (\d+)\n", text)
    return {name.removeprefix(prefix): int(value) for name, value in found}
