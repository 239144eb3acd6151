"""The files of the repository and its pages of documentation."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tracked_files() -> list[str]:
    """Paths of the files in git, relative to the root; skips the test outside a checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-C", str(ROOT), "ls-files"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [path for path in listed if (ROOT / path).exists()]


@dataclass(frozen=True)
class Fence:
    """A fenced block of a page.

    Attributes:
        language: the word after the opening fence.
        mark: the text of an HTML comment on the line before it, or "".
        text: the lines between the fences.
        line: number of the opening fence, from 1.
    """

    language: str
    mark: str
    text: str
    line: int


@dataclass(frozen=True)
class Page:
    """A Markdown file; its path is relative to the root, or absolute."""

    path: str

    @property
    def file(self) -> Path:
        return ROOT / self.path

    @property
    def text(self) -> str:
        return self.file.read_text()

    @property
    def prose(self) -> str:
        """The text without fenced blocks."""
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.S | re.M)

    def fences(self) -> Iterator[Fence]:
        for match in re.finditer(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", self.text, re.S | re.M):
            before = self.text[: match.start(2)]
            yield Fence(match[2], match[1] or "", match[3], before.count("\n") + 1)

    def anchors(self) -> set[str]:
        """Fragments of the headings, as GitHub makes them."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.M)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def pages() -> list[Page]:
    """The README, the changelog and every page of docs/."""
    docs = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
    return [Page(path) for path in ("README.md", "CHANGELOG.md", *docs)]
