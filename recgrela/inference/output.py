"""Writes recommendations as a table, JSON lines, CSV or Parquet; ids are never shortened."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recgrela.inference.histories import Histories
from recgrela.inference.tables import SCHEMA
from recgrela.runs.items import Items
from recgrela.system.console import say
from recgrela.system.files import atomic_write, file_to_write
from recgrela.system.output import result_stream
from recgrela.system.text import printable

SHOWN = 10  # number of last items of the history to print
HEADINGS = ["user", "rank", "score", "item", "title"]
NUMBERS = ("rank", "score")

Batches = Iterable[pa.RecordBatch]


def show_history(console: Console, items: Items, histories: Histories) -> None:
    """Prints the last items of a single history."""
    history = histories.of(0).tolist()
    end = f", the last {SHOWN}" if len(history) > SHOWN else ""
    say(console, f"history of {len(history)} items{end}:")
    for item in history[-SHOWN:]:
        say(console, f"  {items.label(item)}")


def show_table(console: Console, title: str, batches: Batches) -> None:
    """Prints the recommendations of a single user as a table with a title."""
    table = Table()
    for heading in HEADINGS[1:]:
        table.add_column(heading, justify="right" if heading in NUMBERS else "left", overflow="fold")
    for batch in batches:
        for row in batch.to_pylist():
            table.add_row(*map(Text, _cells(row)[1:]))  # not markup: titles may have brackets
    say(console, title)
    console.print(table)


def _write_table(file: IO[str], batches: Batches) -> None:
    """Columns as wide as the widest cell so far, for any number of users."""
    widths = [len(heading) for heading in HEADINGS]
    written = False
    for batch in batches:
        if batch.num_rows == 0:
            continue
        rows = [_cells(row) for row in batch.to_pylist()]
        columns = zip(*rows, strict=True)
        widths = [max([width, *map(len, column)]) for width, column in zip(widths, columns, strict=True)]
        for cells in rows if written else [HEADINGS, *rows]:
            padded = [
                cell.rjust(width) if heading in NUMBERS else cell.ljust(width)
                for heading, cell, width in zip(HEADINGS, cells, widths, strict=True)
            ]
            file.write("  ".join(padded).rstrip() + "\n")
        written = True


def _cells(row: dict[str, Any]) -> list[str]:
    """A row as texts without control characters, in the order of HEADINGS."""
    texts = (row["user"], str(row["rank"]), f"{row['score']:.3f}", row["item"], row["title"] or "")
    return [printable(text) for text in texts]


def _write_jsonl(file: IO[str], batches: Batches) -> None:
    for batch in batches:
        for row in batch.to_pylist():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_csv(file: IO[str], batches: Batches) -> None:
    options = pacsv.WriteOptions(include_header=False)
    file.write(",".join(f'"{name}"' for name in SCHEMA.names) + "\n")
    for batch in batches:
        sink = pa.BufferOutputStream()
        pacsv.write_csv(batch, sink, options)
        file.write(sink.getvalue().to_pybytes().decode())


TEXT: dict[str, Callable[[IO[str], Batches], None]] = {
    "table": _write_table,
    "jsonl": _write_jsonl,
    "csv": _write_csv,
}
FORMATS = (*TEXT, "parquet")


def write_rows(output: str, kind: str, batches: Batches) -> None:
    """Writes recommendations in one of FORMATS, a batch at a time.

    Raises:
        RunError: the file cannot be written; an earlier file of the name is unchanged.
    """
    if kind == "parquet":

        def write(path: Path) -> None:
            with pq.ParquetWriter(path, SCHEMA) as writer:
                for batch in batches:
                    writer.write_batch(batch)

        atomic_write(file_to_write(output, "--output"), write)
        return
    write_text(output, lambda file: TEXT[kind](file, batches))


def write_text(output: str, write: Callable[[IO[str]], None]) -> None:
    """Writes to stdout for "-", or to a file that replaces `output` when it is complete."""
    if output == "-":
        stream = result_stream()
        write(stream)
        stream.flush()
        return

    def write_file(path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            write(file)

    atomic_write(file_to_write(output, "--output"), write_file)
