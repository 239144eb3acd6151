"""Removes compiled objects that are out of date for a reason that ninja does not see.

torch.utils.cpp_extension tells ninja which headers a C++ source includes; of a CUDA source only where torch
has CUDA. Nor does ninja see that a package was replaced by one whose headers are older than the objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SEES_PACKAGES = (
    "csrc/module.cpp",
    "csrc/ops/",
)  # the sources that include headers of torch, pybind11 and CUDA
STAMP = "packages.txt"


def included(source: Path, include: Path) -> set[Path]:
    """The files below `include` that a source includes, at any depth, whatever the preprocessor skips."""
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        text = waiting.pop().read_text()
        for name in re.findall(r'^\s*#\s*include\s+"(.+?)"', text, re.M):
            file = include / name
            if file.exists() and file not in found:
                found.add(file)
                waiting.append(file)
    return found


def remove_outdated(objects: Path, sources: Iterable[str], packages: str) -> list[Path]:
    """Removes objects of `sources`, compiled into the folder `objects`, that have to be compiled anew.

    Args:
        packages: What the headers of other packages are, versions and all; kept in the folder.

    Returns:
        The objects that were removed.
    """
    stamp = objects / STAMP
    replaced = not stamp.exists() or stamp.read_text() != packages
    removed = []
    for source in sources:
        object_file = (objects / source).with_suffix(".o")
        if not object_file.exists():
            continue
        compiled = object_file.stat().st_mtime
        if source.endswith(".cu"):
            files = included(ROOT / source, ROOT / "csrc")
            outdated = any(file.stat().st_mtime > compiled for file in files)
        else:
            outdated = replaced and source.startswith(SEES_PACKAGES)
        if outdated:
            object_file.unlink()
            removed.append(object_file)
    objects.mkdir(parents=True, exist_ok=True)
    stamp.write_text(packages)
    return removed
