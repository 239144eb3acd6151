"""Renames parameters and settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def renamed(state: Mapping[str, Tensor], patterns: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """The same tensors, with each (pattern, replacement) applied in turn to their names."""
    out = {}
    for name, x in state.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        out[name] = x
    return out


def joined(state: Mapping[str, Tensor], parts: Sequence[str], whole: str) -> dict[str, Tensor]:
    """Concatenates the tensors "...PART.suffix" of all `parts` along dimension 0 into "...WHOLE.suffix".

    Raises:
        KeyError: one of the parts is missing.
    """
    out, first = {}, re.compile(rf"(.*\.){re.escape(parts[0])}(\.\w+)$")
    taken = set()
    for name in state:
        if match := first.match(name):
            names = [f"{match[1]}{part}{match[2]}" for part in parts]
            out[f"{match[1]}{whole}{match[2]}"] = torch.cat([state[n] for n in names])
            taken.update(names)
    return {name: x for name, x in state.items() if name not in taken} | out


def count_modules(state: Mapping[str, Tensor], pattern: str) -> int:
    """The number of distinct indices that group 1 of `pattern` matches in the names, such as layers."""
    return len({int(m[1]) for name in state if (m := re.search(pattern, name))})


def given(settings: Mapping[str, Any], **names: str) -> dict[str, Any]:
    """The authors' settings that are present, as floats under our names: `given(settings, OURS="THEIRS")`."""
    return {ours: float(settings[name]) for ours, name in names.items() if settings.get(name) is not None}
