"""items.parquet: the items of a run, so that recommendations have ids and titles without the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recgrela.data import Interactions
from recgrela.system.errors import RunError
from recgrela.system.files import atomic_write

_COLUMNS = {"item_id": pa.string(), "title": pa.string(), "retired": pa.bool_()}


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


def write_items(path: Path, items: Items) -> None:
    """Write the items. Raises RunError if the file cannot be written."""
    columns = (items.tokens, items.titles, items.retired)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, _COLUMNS.values(), strict=True)]
    table = pa.table(arrays, names=list(_COLUMNS))
    atomic_write(path, lambda temporary: pq.write_table(table, temporary))


def read_items(path: Path, n_items: int) -> Items:
    """The items. Raises RunError if the file is missing, damaged, or does not have `n_items` rows.

    In a file of an earlier version, without the column "retired", no item is retired.
    """
    if not path.is_file():
        raise RunError(f"{path}: no such file")
    try:
        # read_table waits for ever if memory for its threads is lacking.
        with pq.ParquetFile(path) as file:
            table = file.read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path}: damaged: {error}") from error
    kinds = dict(zip(table.schema.names, table.schema.types, strict=True))
    if kinds not in (_COLUMNS, {name: _COLUMNS[name] for name in ("item_id", "title")}):
        raise RunError(f"{path}: damaged: expected the text columns item_id and title, and retired (bool)")
    if len(table) != n_items:
        raise RunError(f"{path}: damaged: {len(table)} items, but the run has {n_items}")
    tokens, titles = table["item_id"].to_pylist(), table["title"].to_pylist()
    if "retired" not in kinds:
        return Items(tokens, titles, np.zeros(n_items, dtype=bool))
    if table["item_id"].null_count or table["retired"].null_count:
        raise RunError(f"{path}: damaged: an item has no id or no value of retired")
    return Items(tokens, titles, table["retired"].to_numpy())
