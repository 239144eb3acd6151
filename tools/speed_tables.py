"""Writes the tables of docs/speed.md that come from counted instructions.

python -m tools.speed_tables    after python -m tools.instructions --json benchmarks/results/instructions.json
"""

from __future__ import annotations

import re
import sys

from tools.gpu_estimate import RECORD, Gpu, markdown_of
from tools.instructions.markdown import table
from tools.instructions.record import read_record
from tools.nvcc import ROOT

PAGE = ROOT / "docs" / "speed.md"
BEFORE = RECORD.with_name("instructions_before.json")


def tables() -> dict[str, str]:
    """The tables by the marks of their places."""
    (old_commit, old), (commit, new) = read_record(BEFORE), read_record(RECORD)
    return {
        "instructions": f"Before: commit {old_commit}; now: commit {commit}.\n\n{table(old, new)}",
        "estimates": markdown_of(Gpu(), new),
    }


def updated(page: str) -> str:
    """The page with current tables."""
    for mark, text in tables().items():
        page, count = re.subn(
            rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", rf"\g<1>{text}\n\g<2>", page, flags=re.S
        )
        assert count == 1, f"docs/speed.md has no place marked {mark}"
    return page


def main() -> int:
    PAGE.write_text(updated(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
