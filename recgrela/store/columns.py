"""Events as columns, checked: the form in which stores take them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from recgrela.store.events import Event
from recgrela.system.errors import DataError, one_line

if TYPE_CHECKING:
    import pyarrow as pa

REQUIRED = ("user", "item", "time")
NAMES = (*REQUIRED, "id")


class Columns(NamedTuple):
    """Checked events, one an index.

    Attributes:
        users, items: not empty, and valid Unicode.
        times: finite; -0.0 is 0.0.
        ids: valid Unicode, or None.
    """

    users: list[str]
    items: list[str]
    times: list[float]
    ids: list[str | None]


def columns_of_events(events: Sequence[Event]) -> Columns:
    """The columns of events. Raises DataError, which names the event and its fault."""
    columns = Columns([], [], [], [])
    for i, event in enumerate(events):
        for name, text in (("user", event.user), ("item", event.item)):
            if fault := text_fault(text):
                raise DataError(f"event {i}: {name} {fault}")
        if event.id is not None and (fault := text_fault(event.id)):
            raise DataError(f"event {i}: id {fault}")
        time = event.time
        if isinstance(time, bool) or not isinstance(time, (int, float)) or not _finite(time):
            raise DataError(f"event {i}: time is {time!r}; give seconds since 1970 as a finite number")
        columns.users.append(event.user)
        columns.items.append(event.item)
        columns.times.append(float(time) + 0.0)  # -0.0 + 0.0 is 0.0
        columns.ids.append(event.id)
    return columns


def columns_of_table(table: pa.Table | pa.RecordBatch, rows: int) -> Iterator[Columns]:
    """The columns of a table, at most `rows` rows at a time; checks the whole table first.

    Raises:
        DataError: see `Store.append_table`.
    """
    import pyarrow as pa

    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    if not isinstance(table, pa.Table):
        raise DataError(f"a table of events is a pyarrow.Table, not {type(table).__name__}")
    columns = _checked(table)

    def slices() -> Iterator[Columns]:
        for start in range(0, table.num_rows, rows):
            yield Columns(*(column.slice(start, rows).to_pylist() for column in columns))

    return slices()


def _checked(table: pa.Table) -> list[Any]:
    """The columns user, item, time and id of a table, converted to text and float64."""
    import pyarrow as pa

    if missing := [name for name in REQUIRED if name not in table.column_names]:
        raise DataError(f"the table of events has no column {', '.join(missing)}")
    if wrong := [
        name for name in table.column_names if name not in NAMES or table.column_names.count(name) > 1
    ]:
        raise DataError(
            f"column {wrong[0]!r} of the table of events is unknown or repeated; "
            f"the columns are {', '.join(REQUIRED)} and optionally id"
        )
    users, items = _text(table, "user"), _text(table, "item")
    times = _seconds(table["time"])
    ids = _text(table, "id") if "id" in table.column_names else pa.nulls(table.num_rows, pa.string())
    return [users, items, times, ids]


def _text(table: pa.Table, name: str) -> Any:
    """A column as text without empty strings and, except for ids, without nulls."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from recgrela.system.arrow import plain

    column = plain(table[name])
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
    if not any(is_kind(kind) for is_kind in text) and not (name == "id" and pa.types.is_null(kind)):
        raise DataError(f"column {name} of the table of events is {column.type}; it must be text or integers")
    try:
        column = pc.cast(column, pa.large_string())
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(f"column {name} of the table of events: {one_line(error)}") from error
    empty = pc.equal(column, "")
    _refuse(empty if name == "id" else pc.or_kleene(empty, column.is_null()), f"{name} is null or empty")
    return column


def _seconds(column: Any) -> Any:
    """Times as float64 seconds, finite and without -0.0."""
    import pyarrow as pa
    import pyarrow.compute as pc

    types = pa.types
    if types.is_timestamp(column.type):
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
        column = pc.divide(pc.cast(pc.cast(column, pa.int64()), pa.float64(), safe=False), float(per_second))
    elif types.is_integer(column.type) or types.is_floating(column.type):
        column = pc.cast(column, pa.float64(), safe=False)
    else:
        raise DataError(
            f"column time of the table of events is {column.type}; it must be a number or timestamp"
        )
    bad = pc.invert(pc.is_finite(column))
    _refuse(pc.or_kleene(bad, column.is_null()), "time is null or not finite")
    return pc.add(column, 0.0)


def _refuse(bad: Any, fault: str) -> None:
    """Raise DataError if any row is bad; names the first one."""
    import pyarrow.compute as pc

    row = pc.index(bad, True).as_py()
    if row >= 0:
        raise DataError(f"row {row} of the table of events: {fault}")


def text_fault(text: object) -> str:
    """Why a value is no id, or ""."""
    if not isinstance(text, str):
        return f"is {text!r}; it must be text"
    if not text:
        return "is empty"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"is {text!r}, which is not valid Unicode"
    return ""


def _finite(time: float) -> bool:
    try:
        return math.isfinite(time)
    except OverflowError:  # an integer beyond the range of float
        return False
