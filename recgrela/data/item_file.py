"""Files of items: original ids, with titles and vectors if there are any."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet
from pyarrow import json as arrow_json
from safetensors import SafetensorError
from safetensors.numpy import load_file

from recgrela.data.formats.columns import find_columns, id_fault
from recgrela.data.formats.source import open_source
from recgrela.system.arrow import without_views
from recgrela.system.errors import DataError
from recgrela.system.out_of_memory import MemoryPhase

ID, TITLE, VECTOR = "item_id", "title", "vector"


@dataclass(frozen=True)
class ItemFile:
    """The items of a file, in its order.

    Attributes:
        name: the file's name in messages.
        sha256: hash of the file's bytes after decompression, and of the file of vectors beside it.
        tokens: original ids, all different.
        titles: titles with whitespace collapsed; None for an item without one.
        vectors: [n, D] float32, or None.
    """

    name: str
    sha256: str
    tokens: list[str]
    titles: list[str | None]
    vectors: np.ndarray | None


@MemoryPhase("reading a file of items", "split it, and change the items in several steps")
def read_item_file(path: str) -> ItemFile:
    """Read a CSV, Parquet or JSON lines file with the column "item_id".

    Titles are in the column "title". Vectors are in the column "vector", in a CSV file as JSON lists, or as
    one matrix [n, D] in a .npy or .safetensors file beside the file, with the same name.

    Raises:
        DataError: a file is missing or damaged, a column or value is missing, an id is invalid or occurs
            twice, or vectors are not finite or of different widths; the message names the row, from 1.
    """
    source, name = open_source(path)
    suffix = Path((name or "").lower().removesuffix(".gz")).suffix
    if name is None or suffix not in _READERS:
        raise DataError(f"{path}: expected a file of items: {', '.join(_READERS)}")
    data, label = source.read(name), source.label(name)
    try:
        table = _READERS[suffix](data)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{label}: cannot be read as {suffix} ({str(error).splitlines()[0]})") from None
    find_columns(label, table.schema.names, (ID,))
    for column in (TITLE, VECTOR):
        if column in table.schema.names:
            find_columns(label, table.schema.names, (column,))
    tokens = _tokens(label, table)
    digest = hashlib.sha256(data)
    vectors = _vectors(label, table) if VECTOR in table.schema.names else None
    stem = name[: len(name) - len(suffix) - len(".gz") * name.lower().endswith(".gz")]
    for beside in (source.path / f"{stem}{end}" for end in (".npy", ".safetensors")):
        if beside.is_file():
            if vectors is not None:
                raise DataError(f"{label}: has vectors, and so has {beside}; remove one of them")
            vectors = _matrix(beside, len(tokens))
            digest.update(beside.read_bytes())
    return ItemFile(label, digest.hexdigest(), tokens, _titles(label, table), vectors)


def _read_csv(data: pa.Buffer) -> pa.Table:
    types = {ID: pa.string(), TITLE: pa.string(), VECTOR: pa.string()}
    options = csv.ParseOptions(newlines_in_values=True)
    return csv.read_csv(pa.BufferReader(data), None, options, csv.ConvertOptions(column_types=types))


_READERS: dict[str, Callable[[pa.Buffer], pa.Table]] = {
    ".csv": _read_csv,
    ".parquet": lambda data: parquet.read_table(pa.BufferReader(data)),
    ".jsonl": lambda data: arrow_json.read_json(pa.BufferReader(data)),
}


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without string views and dictionaries."""
    column = without_views(column)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _tokens(label: str, table: pa.Table) -> list[str]:
    column = _plain(table[ID])
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{label}, column {ID!r}: ids must be integers or strings, not {kind}")
    tokens = ["" if token is None else token for token in column.cast(pa.string()).to_pylist()]
    if not tokens:
        raise DataError(f"{label}: the file has no items")
    rows: dict[str, int] = {}
    for row, token in enumerate(tokens, 1):
        if (fault := id_fault(ID, token)) is not None:
            raise DataError(f"{label}, row {row}, {fault}")
        if rows.setdefault(token, row) != row:
            raise DataError(f"{label}, row {row}: item {token!r} is in row {rows[token]} too")
    return tokens


def _titles(label: str, table: pa.Table) -> list[str | None]:
    if TITLE not in table.schema.names:
        return [None] * len(table)
    column = _plain(table[TITLE])
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"{label}, column {TITLE!r}: titles must be strings, not {column.type}")
    return [" ".join((title or "").split()) or None for title in column.to_pylist()]


def _vectors(label: str, table: pa.Table) -> np.ndarray:
    rows: list[np.ndarray] = []
    for row, value in enumerate(table[VECTOR].to_pylist(), 1):
        where = f"{label}, row {row}, column {VECTOR!r}"
        try:
            vector = np.asarray(json.loads(value) if isinstance(value, str) else value, dtype=np.float32)
        except (ValueError, TypeError):
            raise DataError(f"{where}: {str(value)[:40]!r} is not a list of numbers") from None
        if vector.ndim != 1 or (rows and vector.shape != rows[0].shape):
            width = f"of {len(rows[0])} numbers, as in row 1" if rows else "of numbers"
            raise DataError(f"{where}: expected a list {width}")
        if not np.isfinite(vector).all():
            raise DataError(f"{where}: a number is not finite")
        rows.append(vector)
    return np.stack(rows)


def _matrix(path: Path, rows: int) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            matrix = np.load(path, allow_pickle=False)
        else:
            tensors = load_file(path)
            if len(tensors) != 1:
                raise DataError(f"{path}: {len(tensors)} tensors; expected one, the vectors [items, D]")
            (matrix,) = tensors.values()
    except (OSError, ValueError, EOFError, SafetensorError) as error:
        raise DataError(f"{path}: not an array, or damaged: {error}") from None
    if matrix.ndim != 2 or len(matrix) != rows or matrix.dtype.kind not in "fiu":
        raise DataError(f"{path}: {matrix.dtype} {list(matrix.shape)}; expected numbers [{rows}, D]")
    matrix = np.asarray(matrix, dtype=np.float32)
    if not np.isfinite(matrix).all():
        bad = int(np.flatnonzero(~np.isfinite(matrix).all(1))[0]) + 1
        raise DataError(f"{path}, row {bad}: a number is not finite")
    return matrix
