"""The objects that an incremental build removes, so that they are compiled again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from build_backend import objects

SOURCES = [
    "csrc/module.cpp",
    "csrc/ops/op.cpp",
    "csrc/cpu/kernels.cpp",
    "csrc/kernels/a.cu",
    "csrc/kernels/b.cu",
]
PACKAGES = "torch 2.13.0\n"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of sources older than their objects; a.cu includes first.cuh, which includes second.cuh."""
    monkeypatch.setattr(objects, "ROOT", tmp_path)
    texts = dict.fromkeys(SOURCES, "") | {
        "csrc/kernels/a.cu": '#include <vector>\n  #  include "kernels/first.cuh"\n#include "none.h"\n',
        "csrc/kernels/first.cuh": '#pragma once\n#include "kernels/second.cuh"\n',
        "csrc/kernels/second.cuh": '#include "kernels/first.cuh"\n',
    }
    for name, text in texts.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        os.utime(file, (1000, 1000))
    for name in SOURCES:
        file = (tmp_path / "objects" / name).with_suffix(".o")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (2000, 2000))
    (tmp_path / "objects" / objects.STAMP).write_text(PACKAGES)
    return tmp_path


def removed(tree: Path, packages: str = PACKAGES) -> list[str]:
    files = objects.remove_outdated(tree / "objects", SOURCES, packages)
    assert not any(file.exists() for file in files)
    return [str(file.relative_to(tree / "objects")) for file in files]


def test_nothing_changed(tree: Path) -> None:
    assert removed(tree) == []


@pytest.mark.parametrize("header", ["first.cuh", "second.cuh"])
def test_a_header_of_a_cuda_source(tree: Path, header: str) -> None:
    os.utime(tree / "csrc/kernels" / header, (3000, 3000))
    assert removed(tree) == ["csrc/kernels/a.o"]
    assert removed(tree) == []


def test_another_torch(tree: Path) -> None:
    assert removed(tree, "torch 2.15.0\n") == ["csrc/module.o", "csrc/ops/op.o"]
    assert removed(tree, "torch 2.15.0\n") == []


def test_objects_of_unknown_packages(tree: Path) -> None:
    (tree / "objects" / objects.STAMP).unlink()
    assert removed(tree) == ["csrc/module.o", "csrc/ops/op.o"]


def test_an_empty_folder(tree: Path) -> None:
    assert objects.remove_outdated(tree / "new", SOURCES, PACKAGES) == []


def test_the_headers_of_a_kernel() -> None:
    root = Path(__file__).parents[2]
    source = root / "csrc/kernels/gated_rela/forward_float32.cu"
    names = {file.name for file in objects.included(source, root / "csrc")}
    assert {"kernels.cuh", "forward.cuh", "params.h", "device.cuh"} <= names
