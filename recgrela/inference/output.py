"""Writes recommendations as a table, JSON lines, CSV or Parquet; ids are never shortened."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recgrela.inference.histories import Histories
from recgrela.inference.recommender import SCHEMA
from recgrela.runs.items import Items
from recgrela.system.console import say
from recgrela.system.files import atomic_write, expand_path

SHOWN = 10  # number of last items of the history to print
WIDE = 10_000  # columns of an output that is not a terminal, which has no width

Batches = Iterable[pa.RecordBatch]


def show_history(console: Console, items: Items, histories: Histories) -> None:
    """Prints the last items of a single history."""
    history = histories.of(0).tolist()
    end = f", the last {SHOWN}" if len(history) > SHOWN else ""
    say(console, f"history of {len(history)} items{end}:")
    for item in history[-SHOWN:]:
        say(console, f"  {items.label(item)}")


def show_table(output: str, console: Console, title: str, batches: Batches, many: bool) -> None:
    """Prints recommendations as a table with a title, with the user's id in each row if there are `many`."""
    table = Table()
    headings = ["user"] * many + ["rank", "score", "item", "title"]
    for heading in headings:
        right = heading in ("rank", "score")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for batch in batches:
        for row in batch.to_pylist():
            cells = {
                **row,
                "rank": str(row["rank"]),
                "score": f"{row['score']:.3f}",
                "title": row["title"] or "",
            }
            table.add_row(*(Text(cells[name]) for name in headings))  # not markup: titles may have brackets

    def show(console: Console) -> None:
        say(console, title)
        console.print(table)

    if output == "-" and console.is_terminal:
        show(console)
    else:
        write_text(output, lambda file: show(Console(file=file, width=WIDE)))


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


TEXT: dict[str, Callable[[IO[str], Batches], None]] = {"jsonl": _write_jsonl, "csv": _write_csv}
FORMATS = ("table", *TEXT, "parquet")


def write_rows(output: str, kind: str, batches: Batches) -> None:
    """Writes recommendations as "jsonl", "csv" or "parquet", a batch at a time.

    Raises:
        RunError: the file cannot be written; an earlier file of the name is unchanged.
    """
    if kind == "parquet":

        def write(path: Path) -> None:
            with pq.ParquetWriter(path, SCHEMA) as writer:
                for batch in batches:
                    writer.write_batch(batch)

        atomic_write(expand_path(output, "--output"), write)
        return
    write_text(output, lambda file: TEXT[kind](file, batches))


def write_text(output: str, write: Callable[[IO[str]], None]) -> None:
    """Writes to stdout for "-", or to a file that replaces `output` when it is complete."""
    if output == "-":
        write(sys.stdout)
        sys.stdout.flush()
        return

    def write_file(path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            write(file)

    atomic_write(expand_path(output, "--output"), write_file)
