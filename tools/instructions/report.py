"""Tables of counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from tools.instructions.kinds import KINDS
from tools.instructions.paths import total
from tools.instructions.record import KernelCounts, Listing

Group = tuple[str, str, str, str, str]


def label(counts: KernelCounts) -> str:
    return f"{counts.kernel}<{', '.join(map(str, counts.sizes))}>"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}".removesuffix(".0")


def kernel_tables(kernels: Iterable[KernelCounts]) -> Iterable[Table]:
    """A table for each operator."""
    for (op, unit), group in groupby(kernels, key=lambda k: (k.op, k.unit)):
        table = Table(title=f"{op}: warp instructions a {unit}")
        for column in ("kernel", "dtype"):
            table.add_column(column, no_wrap=True)
        for column in ("total", *KINDS, "special", "shared", "global", "registers", "once"):
            table.add_column(column, justify="right")
        for k in group:
            values = [k.total, *(getattr(k, kind) for kind in KINDS), k.special, k.shared, k.global_]
            table.add_row(label(k), k.dtype, *map(_number, values), str(k.registers), f"{k.once:,}")
        yield table


def groups_of(kernels: Iterable[KernelCounts]) -> dict[Group, list[KernelCounts]]:
    """The kernels that serve the same calls, by operator, direction, form, variant and dtype.

    The forms are "causal" and "bidirectional" for gated_rela, "" for other operators, and "cut" for what is
    needed in addition if sequences are cut.
    """
    found: dict[Group, list[KernelCounts]] = {}
    for k in kernels:
        both = ("causal", "bidirectional") if k.op == "gated_rela" else ("",)
        for form in both if k.when == "always" else (k.when,):
            found.setdefault((k.op, k.direction, form, k.variant, k.dtype), []).append(k)
    return found


def comparison_tables(
    old: Sequence[KernelCounts], new: Sequence[KernelCounts], old_commit: str
) -> Iterable[Table]:
    """A table for each operator with the counts before and after of the kernels that serve the same calls."""
    before, now = groups_of(old), groups_of(new)
    for (op, unit), groups in groupby(now, key=lambda group: (group[0], now[group][0].unit)):
        table = Table(title=f"{op}: warp instructions a {unit}, before ({old_commit}) and now")
        for column in ("calls", "dtype"):
            table.add_column(column, no_wrap=True)
        for column in ("before", "now", "ratio", *KINDS, "registers"):
            table.add_column(column, justify="right")
        for group in groups:
            was, is_now = before.get(group, []), now[group]
            _, direction, form, variant, dtype = group
            name = ", ".join(filter(None, (direction, variant, form)))
            kinds = [f"{_sum(was, kind)} > {_sum(is_now, kind)}" for kind in KINDS]
            ratio = sum(k.total for k in is_now) / sum(k.total for k in was) if was else 0.0
            totals = (_sum(was, "total"), _sum(is_now, "total"), f"{ratio:.2f}" if was else "")
            registers = [str(max((k.registers for k in kernels), default="")) for kernels in (was, is_now)]
            table.add_row(name, dtype, *totals, *kinds, " > ".join(registers))
        yield table


def _sum(kernels: Iterable[KernelCounts], attribute: str) -> str:
    values = [getattr(kernel, attribute) for kernel in kernels]
    return _number(sum(values)) if values else ""


def loop_table(listing: Listing) -> Table:
    """The loops of a kernel."""
    table = Table(title=f"{listing.name}, {listing.resources.registers} registers")
    for column in ("loop", "every", "shortest", "full", "longest", *KINDS, "special", "shared", "global"):
        table.add_column(column, justify="left" if column == "loop" else "right", no_wrap=True)
    for i, loop in enumerate(listing.loops):
        values = [*map(total, (loop.every, loop.shortest, loop.full, loop.longest))]
        values += [loop.full[x] for x in (*KINDS, "special", "shared", "global")]
        table.add_row("  " * loop.depth + (str(i) if i else "0, outside of loops"), *map(str, values))
    return table


def show(console: Console, listings: Sequence[Listing], loops: bool) -> None:
    """Prints tables of counts, then the loops of kernels without counts, or of all kernels."""
    for table in kernel_tables(known(listings)):
        console.print(table)
    for listing in listings:
        if loops or listing.counts is None:
            console.print(loop_table(listing))


def known(listings: Iterable[Listing]) -> list[KernelCounts]:
    """The counts that there are, each kernel once, in the order of the table."""
    unique = {listing.counts.key: listing.counts for listing in listings if listing.counts}
    return sorted(
        unique.values(), key=lambda k: (k.op, k.direction != "forward", _natural(k.variant), *k.key)
    )


def _natural(text: str) -> list[tuple[int, str]]:
    """Orders text by the numbers in it."""
    return [(int(x), "") if x.isdigit() else (0, x) for x in re.split(r"(\d+)", text)]
