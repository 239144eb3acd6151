"""Files of items: original ids, with titles and vectors if there are any."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError  # of the header of a .npy file, a Python literal
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv
from safetensors import SafetensorError
from safetensors.torch import load_file

from recgrela.data.formats.columns import find_columns
from recgrela.data.formats.id_columns import BadId, encode, encode_ids, id_fault
from recgrela.data.formats.parquet import read_columns
from recgrela.data.formats.source import open_source
from recgrela.data.formats.unpacking import Limit
from recgrela.system.arrow import plain
from recgrela.system.errors import DataError
from recgrela.system.out_of_memory import MemoryPhase
from recgrela.system.text import one_line, quote

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
    limit = Limit.of_memory()
    source, name = open_source(path, limit)
    suffix = Path((name or "").lower().removesuffix(".gz")).suffix
    if name is None or suffix not in _READERS:
        raise DataError(f"{path}: expected a file of items: {', '.join(_READERS)}")
    data, label = source.read(name), source.label(name)
    try:
        table = _READERS[suffix](data, label, limit)
        table.validate(full=True)
    except (pa.ArrowException, UnicodeDecodeError) as error:  # Unicode: the name of a column
        raise DataError(f"{label}: cannot be read as {suffix} ({one_line(error)})") from None
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


def _read_csv(data: pa.Buffer, label: str, limit: Limit) -> pa.Table:
    types = {ID: pa.string(), TITLE: pa.string(), VECTOR: pa.string()}
    options = csv.ParseOptions(newlines_in_values=True)
    return csv.read_csv(pa.BufferReader(data), None, options, csv.ConvertOptions(column_types=types))


def _read_jsonl(data: pa.Buffer, label: str, limit: Limit) -> pa.Table:
    """JSON lines, read by Python: Arrow's reader crashes on deep nesting. Vectors become texts again."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(data.to_pybytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{label}, line {number}: not JSON: {one_line(error)}") from None
        if not isinstance(row, dict):
            raise DataError(f"{label}, line {number}: {quote(row)} is not an object")
        if row.get(VECTOR) is not None:
            row[VECTOR] = json.dumps(row[VECTOR])
        rows.append({name: row[name] for name in (ID, TITLE, VECTOR) if name in row})
    if not rows:
        raise DataError(f"{label}: the file has no items")
    names = [name for name in (ID, TITLE, VECTOR) if any(name in row for row in rows)]
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(f"{label}, column {name!r}: {one_line(error)}") from None
    return pa.table(columns)


def _read_parquet(data: pa.Buffer, label: str, limit: Limit) -> pa.Table:
    return read_columns(data, label, limit, (ID,), optional=(TITLE, VECTOR))[0]


_READERS: dict[str, Callable[[pa.Buffer, str, Limit], pa.Table]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
}


def _kind(column: pa.ChunkedArray) -> pa.DataType:
    """The type of a column's values."""
    return column.type.value_type if pa.types.is_dictionary(column.type) else column.type


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    """The values as texts; those of a dictionary are shared, so that repeated ones take no memory."""
    if not pa.types.is_dictionary(column.type):
        return column.cast(pa.string()).to_pylist()
    codes, values = encode(column)
    texts = values.cast(pa.string()).to_pylist()
    return [None if code is None else texts[code] for code in codes.to_pylist()]


def _tokens(label: str, table: pa.Table) -> list[str]:
    try:
        ids = encode_ids(table[ID])
    except BadId as bad:
        raise DataError(f"{label}{bad.where(ID)}") from None
    tokens = [ids.tokens[code] for code in ids.codes.tolist()]
    if not tokens:
        raise DataError(f"{label}: the file has no items")
    rows: dict[str, int] = {}
    for row, token in enumerate(tokens, 1):
        if (fault := id_fault(ID, token)) is not None:
            raise DataError(f"{label}, row {row}, {fault}")
        if rows.setdefault(token, row) != row:
            raise DataError(f"{label}, row {row}: item {quote(token)} is in row {rows[token]} too")
    return tokens


def _titles(label: str, table: pa.Table) -> list[str | None]:
    if TITLE not in table.schema.names:
        return [None] * len(table)
    column = plain(table[TITLE])
    kind = _kind(column)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{label}, column {TITLE!r}: titles must be strings, not {kind}")
    clean: dict[str | None, str | None] = {}  # repeated titles share one text
    titles = _texts(column)
    for title in titles:
        if title not in clean:
            clean[title] = " ".join((title or "").split()) or None
    return [clean[title] for title in titles]


def _vectors(label: str, table: pa.Table) -> np.ndarray:
    rows: list[np.ndarray] = []
    for row, value in enumerate(_lists(table[VECTOR]), 1):
        where = f"{label}, row {row}, column {VECTOR!r}"
        try:
            with np.errstate(over="ignore"):  # infinity is refused below
                vector = np.asarray(json.loads(value) if isinstance(value, str) else value, dtype=np.float32)
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise DataError(f"{where}: {quote(value)} is not a list of numbers") from None
        if vector.ndim != 1 or (rows and vector.shape != rows[0].shape):
            width = f"of {len(rows[0])} numbers, as in row 1" if rows else "of numbers"
            raise DataError(f"{where}: expected a list {width}")
        if not np.isfinite(vector).all():
            raise DataError(f"{where}: a number is not finite")
        rows.append(vector)
    return np.stack(rows)


def _lists(column: pa.ChunkedArray) -> Iterator[Any]:
    """The values of a column; a list as an array, without an object for each number."""
    for value in column:
        inside = getattr(value, "values", None)
        yield inside.to_numpy(zero_copy_only=False) if isinstance(inside, pa.Array) else value.as_py()


def _matrix(path: Path, rows: int) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            matrix = np.load(path, mmap_mode="r", allow_pickle=False)  # refuses a shape above the file's size
            if not isinstance(matrix, np.ndarray):
                raise DataError(f"{path}: an archive of arrays (.npz); expected one array")
        else:
            tensors = load_file(path)
            if len(tensors) != 1:
                raise DataError(f"{path}: {len(tensors)} tensors; expected one, the vectors [items, D]")
            (tensor,) = tensors.values()  # NumPy has no bfloat16
            matrix = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except (OSError, ValueError, EOFError, SafetensorError, SyntaxError, TokenError) as error:
        raise DataError(f"{path}: not an array, or damaged: {one_line(error)}") from None
    if matrix.ndim != 2 or len(matrix) != rows or matrix.dtype.kind not in "fiu":
        raise DataError(f"{path}: {matrix.dtype} {list(matrix.shape)}; expected numbers [{rows}, D]")
    with np.errstate(over="ignore"):
        matrix = np.array(matrix, dtype=np.float32)
    if not np.isfinite(matrix).all():
        bad = int(np.flatnonzero(~np.isfinite(matrix).all(1))[0]) + 1
        raise DataError(f"{path}, row {bad}: a number is not finite")
    return matrix
