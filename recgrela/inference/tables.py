"""Tables of recommended items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from torch import Tensor

from recgrela.runs.items import Items

SCHEMA = pa.schema(
    [
        ("user", pa.string()),
        ("rank", pa.int32()),
        ("item", pa.string()),
        ("title", pa.string()),
        ("score", pa.float32()),
    ]
)


class ItemTables:
    """Makes rows of a table from item ids and scores.

    Args:
        items: the original ids and titles of items.
    """

    def __init__(self, items: Items) -> None:
        self._tokens, self._titles = pa.array(items.tokens, pa.string()), pa.array(items.titles, pa.string())

    def make(self, users: Sequence[str], items: Tensor, scores: Tensor) -> pa.RecordBatch:
        """Items and scores [B, k] of users as rows of `SCHEMA`; missing places, item 0, are left out."""
        found, values = items.cpu().numpy(), scores.cpu().numpy()
        rows, ranks = np.nonzero(found > 0)
        index = pa.array(found[rows, ranks])
        columns = [
            pa.array(users, pa.string()).take(pa.array(rows)),
            pa.array((ranks + 1).astype(np.int32)),
            self._tokens.take(index),
            self._titles.take(index),
            pa.array(values[rows, ranks], pa.float32()),
        ]
        return pa.record_batch(columns, schema=SCHEMA)
