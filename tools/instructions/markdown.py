"""The table of counts in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tools.instructions.record import KernelCounts
from tools.instructions.report import groups_of

DTYPES = ("float32", "bfloat16")


def lines_of(old: Sequence[KernelCounts], new: Sequence[KernelCounts]) -> Iterable[str]:
    """Yields the lines of the table: a row for each variant, and two columns for each dtype."""
    before, now = groups_of(old), groups_of(new)
    titles = [f"{dtype} {when}" for dtype in DTYPES for when in ("before", "now")]
    yield f"| | {' | '.join(titles)} |"
    yield "|---|" + "---|" * len(titles)
    rows = [(op, direction, form, variant) for op, direction, form, variant, _ in now if form != "cut"]
    for op, direction, form, variant in dict.fromkeys(rows):
        cells = []
        for dtype in DTYPES:
            group = (op, direction, form, variant, dtype)
            cells += [_cell(before.get(group)), _cell(now.get(group))]
        name = ", ".join(filter(None, (direction, variant, form)))
        yield f"| `{op}` {name} | {' | '.join(cells)} |"


def _cell(kernels: Sequence[KernelCounts] | None) -> str:
    value = sum(kernel.total for kernel in kernels or ())
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if kernels else ""


def table(old: Sequence[KernelCounts], new: Sequence[KernelCounts]) -> str:
    return "\n".join(lines_of(old, new))
