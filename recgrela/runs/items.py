"""items.parquet: the items of a run, so that recommendations have ids and titles without the data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recgrela.data import Interactions
from recgrela.system.errors import RunError
from recgrela.system.files import atomic_write


@dataclass(frozen=True)
class Items:
    """Original ids and titles by item id; row 0 is padding."""

    tokens: list[str]
    titles: list[str | None]

    def label(self, item: int) -> str:
        """The original id of an item, followed by its title if it has one."""
        title = self.titles[item]
        return self.tokens[item] if title is None else f"{self.tokens[item]}  {title}"


def write_items(path: Path, data: Interactions) -> None:
    """Write the items of the data. Raises RunError if the file cannot be written."""
    titles = data.titles if data.titles is not None else [None] * data.n_items
    columns = {"item_id": pa.array(data.item_ids, pa.string()), "title": pa.array(titles, pa.string())}
    table = pa.table(columns)
    atomic_write(path, lambda temporary: pq.write_table(table, temporary))


def read_items(path: Path, n_items: int) -> Items:
    """The items. Raises RunError if the file is missing, damaged, or does not have `n_items` rows."""
    if not path.is_file():
        raise RunError(f"{path}: no such file")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path}: damaged: {error}") from error
    if table.schema.names != ["item_id", "title"] or set(table.schema.types) != {pa.string()}:
        raise RunError(f"{path}: damaged: expected the text columns item_id and title")
    if len(table) != n_items:
        raise RunError(f"{path}: damaged: {len(table)} items, but the run has {n_items}")
    return Items(table["item_id"].to_pylist(), table["title"].to_pylist())
