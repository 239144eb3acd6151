"""The tree in docs/architecture.md has a line for every file, and every line names a file."""

from __future__ import annotations

import re
from pathlib import Path

from python_tests.support.project import ROOT, tracked_files

# Folders whose files all have a line. In python_tests, only folders have one.
COVERED = ("benchmarks/", "build_backend/", "csrc/", "docs/", "recgrela/", "tools/")
DATA = ("benchmarks/results/", "docs/ml-100k/", "docs/ml-1m/")


def tree() -> list[str]:
    """Paths of the lines of the tree; a folder ends with a slash, and its files are indented below it."""
    text = (ROOT / "docs/architecture.md").read_text()
    block = re.search(r"<!-- tree -->\n```\n(.*?)```", text, re.S)
    assert block, "docs/architecture.md has no block marked <!-- tree -->"
    folder, paths = "", []
    for line in filter(None, block[1].splitlines()):
        indent, name, words = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()
        assert words, f"{name} has no description"
        if not indent:
            folder = name if name.endswith("/") else ""
        paths.append(folder + name if indent else name)
    return paths


def expected(tracked: list[str]) -> set[str]:
    """Paths that must have a line."""
    files = {
        path
        for path in tracked
        if path.startswith(COVERED) and not path.startswith(DATA) and Path(path).name != "__init__.py"
    }
    tests = {"/".join(path.split("/")[:2]) + "/" for path in tracked if path.count("/") > 1}
    return files | {path for path in tests if path.startswith("python_tests/")}


def test_every_line_names_a_file() -> None:
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_no_line_occurs_twice() -> None:
    paths = tree()
    assert sorted(set(paths)) == sorted(paths)


def test_every_file_has_a_line() -> None:
    assert sorted(expected(tracked_files()) - set(tree())) == []
