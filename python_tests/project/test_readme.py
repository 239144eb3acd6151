"""The README's map of the tree is complete and true."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def mapped() -> list[str]:
    text = (ROOT / "README.md").read_text()
    block = re.search(r"<!-- tree -->\n```\n(.*?)```", text, re.S)
    assert block, "README.md has no block marked <!-- tree -->"
    folder, paths = "", []
    for line in block[1].splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        if name.endswith("/") and not indent:
            folder = name
        paths.append(folder + name if indent else name)
    return paths


def test_every_entry_exists() -> None:
    assert not [path for path in mapped() if not (ROOT / path).exists()]


def test_every_source_has_a_line() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    entries = mapped()
    sources = [
        p
        for p in tracked
        if p.startswith(("csrc/", "recgrela/", "benchmarks/", "build_backend/")) and "results/" not in p
    ]
    assert sources
    assert not [p for p in sources if p not in entries and Path(p).name != "__init__.py"]


def test_the_python_examples_run() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
