"""items.parquet: the items of a run, so that recommendations have ids and titles without the data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recgrela.data import Interactions
from recgrela.system.errors import RunError, one_line
from recgrela.system.files import atomic_stream

_COLUMNS = {"item_id": pa.string(), "title": pa.string(), "retired": pa.bool_()}
_CHECKSUM = b"sha256"  # in the metadata of the schema: hash of the columns


@dataclass(frozen=True)
class Items:
    """The items of a run by item id; row 0 is padding.

    Attributes:
        tokens: original ids.
        titles: titles; None for an item without one.
        retired: [n_items] bool; a retired item may occur in histories but is never recommended.
    """

    tokens: list[str]
    titles: list[str | None]
    retired: np.ndarray = field(compare=False)

    @classmethod
    def of(cls, data: Interactions) -> Items:
        """The items of the data; none is retired."""
        titles: list[str | None] = data.titles or [None] * data.n_items
        return cls(data.item_ids, titles, np.zeros(data.n_items, dtype=bool))

    def label(self, item: int) -> str:
        """The original id of an item, followed by its title if it has one."""
        title = self.titles[item]
        return self.tokens[item] if title is None else f"{self.tokens[item]}  {title}"


def ids_sha256(tokens: Sequence[str]) -> str:
    """Hash of items' original ids in their order, which protocol.json records."""
    return _hash(pa.chunked_array([pa.array(tokens, pa.string())]))


def write_items(path: Path, items: Items) -> None:
    """Write the items with a checksum. Raises RunError if the file cannot be written."""
    columns = (items.tokens, items.titles, items.retired)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, _COLUMNS.values(), strict=True)]
    table = pa.table(arrays, names=list(_COLUMNS))
    table = table.replace_schema_metadata({_CHECKSUM: _table_hash(table)})
    with atomic_stream(path) as file:
        pq.write_table(table, file)


def read_items(path: Path, n_items: int, ids: str | None = None) -> Items:
    """The items.

    In a file of an earlier version, without the column "retired" or a checksum, no item is retired.

    Args:
        path: the file.
        n_items: number of rows that it must have.
        ids: `ids_sha256` of the original ids that it must have; None if the run is of an earlier version.

    Raises:
        RunError: the file is missing or damaged, or has other items.
    """
    if not path.is_file():
        raise RunError(f"{path}: no such file")
    try:
        # read_table waits for ever if memory for its threads is lacking.
        with pq.ParquetFile(path) as file:
            table = file.read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path}: damaged: {one_line(error)}") from error
    kinds = dict(zip(table.schema.names, table.schema.types, strict=True))
    if kinds not in (_COLUMNS, {name: _COLUMNS[name] for name in ("item_id", "title")}):
        raise RunError(f"{path}: damaged: expected the text columns item_id and title, and retired (bool)")
    if len(table) != n_items:
        raise RunError(f"{path}: damaged: {len(table)} items, but the run has {n_items}")
    if table["item_id"].null_count or ("retired" in kinds and table["retired"].null_count):
        raise RunError(f"{path}: damaged: an item has no id or no value of retired")
    checksum = (table.schema.metadata or {}).get(_CHECKSUM)
    if checksum is None and ids is not None:
        raise RunError(f"{path}: damaged: it has no checksum, so recgrela did not write it; restore the file")
    if checksum is not None and checksum.decode("ascii", "replace") != _table_hash(table):
        raise RunError(f"{path}: damaged: its content does not have its checksum; restore the file")
    if ids is not None and _hash(table["item_id"]) != ids:
        raise RunError(f"{path}: not the items of this run, or in another order; restore the file")
    tokens, titles = table["item_id"].to_pylist(), table["title"].to_pylist()
    if "retired" not in kinds:
        return Items(tokens, titles, np.zeros(n_items, dtype=bool))
    return Items(tokens, titles, table["retired"].to_numpy())


def _table_hash(table: pa.Table) -> str:
    parts = [f"{name}:{_hash(table[name])}" for name in table.schema.names]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _hash(column: pa.ChunkedArray) -> str:
    """Hash of a column of text or bools, whatever its chunks."""
    if pa.types.is_boolean(column.type):
        return hashlib.sha256(column.to_numpy().tobytes()).hexdigest()
    lengths, text = hashlib.sha256(), hashlib.sha256()
    for chunk in column.chunks:
        size = pc.fill_null(pc.binary_length(chunk), -1)
        lengths.update(size.to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
        # A concatenation drops what a slice does not show; an empty string takes the place of null.
        packed = pa.concat_arrays([pc.fill_null(chunk, "")])
        offsets = np.frombuffer(packed.buffers()[1], dtype=np.int32)[packed.offset :][: len(packed) + 1]
        if len(packed) and offsets[-1] > offsets[0]:
            text.update(memoryview(packed.buffers()[2])[offsets[0] : offsets[-1]])
    return hashlib.sha256(lengths.digest() + text.digest()).hexdigest()
