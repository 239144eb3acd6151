"""Removes objects that are outdated for reasons that ninja cannot detect.

torch.utils.cpp_extension tells ninja the headers of C++ sources, but those of CUDA sources only if torch has
CUDA. Ninja also does not notice that a package was replaced by another version, if its headers are older than
the objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
USES_PACKAGES = (
    "csrc/module.cpp",
    "csrc/ops/",
)  # sources that include headers of torch, pybind11 and CUDA
STAMP = "packages.txt"


def included(source: Path, include: Path) -> set[Path]:
    """Returns the files in `include` that a source includes directly or indirectly, ignoring conditionals."""
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
    """Removes the objects that must be recompiled.

    Args:
        objects: Folder of the objects.
        sources: Source files, relative to the repository.
        packages: Names and versions of the packages whose headers are used. Stored in `objects`.

    Returns:
        The removed objects.
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
            outdated = replaced and source.startswith(USES_PACKAGES)
        if outdated:
            object_file.unlink()
            removed.append(object_file)
    objects.mkdir(parents=True, exist_ok=True)
    stamp.write_text(packages)
    return removed
