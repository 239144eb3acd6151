"""The fastest variants."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

# Differences from the default's results, by norm, that rounding explains.
TOLERANCES = {"float32": 2e-5, "float16": 3e-3, "bfloat16": 2e-2}
DEFAULT = "default"


@dataclass(frozen=True)
class Row:
    """Times of a variant at one size.

    Attributes:
        op, case, dtype, direction, variant: what was timed.
        us, min_us: median and least microseconds.
        difference: from the default's results; None: not a number.
    """

    op: str
    case: str
    dtype: str
    direction: str
    variant: str
    us: float
    min_us: float
    difference: float | None

    @property
    def agrees(self) -> bool:
        return self.difference is not None and self.difference <= TOLERANCES[self.dtype]

    @property
    def size(self) -> tuple[str, str, str, str]:
        return self.op, self.case, self.dtype, self.direction


def by_size(rows: Iterable[Row]) -> Mapping[tuple[str, str, str, str], dict[str, Row]]:
    """The rows of each size, by variant."""
    found: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.size, {})[row.variant] = row
    return found


def wrong(rows: Iterable[Row]) -> set[tuple[str, str]]:
    """Variants with a result that differs from the default's, as operator and variant."""
    return {(row.op, row.variant) for row in rows if not row.agrees}


def best_of(variants: Mapping[str, Row], excluded: set[tuple[str, str]]) -> Row:
    """The fastest variant of a size; the default if none is right."""
    right = [row for row in variants.values() if (row.op, row.variant) not in excluded]
    return min(right or [variants[DEFAULT]], key=lambda row: row.us)


def ratios(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Geometric mean over all sizes of each variant's time, relative to the default's, by operator."""
    logs: dict[str, dict[str, list[float]]] = {}
    for variants in by_size(rows).values():
        for row in variants.values():
            log = math.log(row.us / variants[DEFAULT].us)
            logs.setdefault(row.op, {}).setdefault(row.variant, []).append(log)
    return {
        op: {name: math.exp(statistics.fmean(values)) for name, values in of_op.items()}
        for op, of_op in logs.items()
    }


def table_of(rows: Sequence[Row]) -> Table:
    """The default and the fastest variant of each size."""
    table, excluded = Table(), wrong(rows)
    for column in ("operator", "size", "dtype", "direction", "fastest"):
        table.add_column(column, no_wrap=True)
    for column in ("default us", "fastest us", "ratio"):
        table.add_column(column, justify="right")
    for size, variants in by_size(rows).items():
        best, default = best_of(variants, excluded), variants[DEFAULT]
        numbers = (f"{default.us:,.1f}", f"{best.us:,.1f}", f"{best.us / default.us:.2f}")
        table.add_row(*size, best.variant, *numbers)
    return table


def advice(rows: Sequence[Row]) -> Iterator[str]:
    """Says which variant is the fastest over all sizes of an operator, and how to make it the default."""
    excluded = wrong(rows)
    for op, variant in sorted(excluded):
        largest = [row.difference for row in rows if (row.op, row.variant) == (op, variant)]
        yield f"{op} {variant}: results differ from the default's ({', '.join(map(str, largest))})"
    for op, of_op in ratios(rows).items():
        right = {name: ratio for name, ratio in of_op.items() if (op, name) not in excluded}
        best = min(right or {DEFAULT: 1.0}, key=lambda name: right.get(name, 1.0))
        if best == DEFAULT:
            yield f"{op}: the default is the fastest over all sizes"
            continue
        defines = " ".join(f"-DRECGRELA_{op.upper()}_{macro}" for macro in best.split(","))
        yield (
            f"{op}: {best} takes {right[best]:.2f} of the default's time over all sizes. To make it the "
            f"default, set it in csrc/kernels/{op}/tuning.h, or build with "
            f'RECGRELA_NVCC_FLAGS="{defines}"'
        )


def record(rows: Sequence[Row], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Rows and facts as JSON."""
    return {"benchmark": "variants", **facts, "rows": [vars(row) for row in rows]}
