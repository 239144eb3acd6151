"""The table of counts in docs/speed.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tools.instructions.record import KernelCounts
from tools.instructions.report import Group, groups_of

DTYPES = ("float32", "bfloat16")
SHOWN = ("always", "bidirectional")


def lines_of(old: Sequence[KernelCounts], new: Sequence[KernelCounts]) -> Iterable[str]:
    """Yields the lines of the table: a row for each variant, and two columns for each dtype."""
    before, now = groups_of(old), groups_of(new)
    titles = [f"{dtype} {when}" for dtype in DTYPES for when in ("before", "now")]
    yield f"| | {' | '.join(titles)} |"
    yield "|---|" + "---|" * len(titles)
    rows = [(op, direction, when, variant) for op, direction, when, variant, _ in now if when in SHOWN]
    for op, direction, when, variant in dict.fromkeys(rows):
        if "partial" in variant:
            continue
        cells = []
        for dtype in DTYPES:
            group = (op, direction, when, variant, dtype)
            cells += [_cell(before, group), _cell(now, group)]
        sums = " sums" if when == "bidirectional" else ""
        yield f"| `{op}`{sums} {direction}, {variant} | {' | '.join(cells)} |"


def _cell(groups: dict[Group, list[KernelCounts]], group: Group) -> str:
    kernels = groups.get(group, [])
    value = sum(kernel.total for kernel in kernels)
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if kernels else ""


def table(old: Sequence[KernelCounts], new: Sequence[KernelCounts]) -> str:
    return "\n".join(lines_of(old, new))
