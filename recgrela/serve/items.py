"""Search of items by id and title."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recgrela.inference.catalogue import Catalogue


class ItemSearch:
    """Finds the items whose id or title contains a text, without regard to case.

    Args:
        catalogue: the items.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._index = catalogue.index
        self._tokens = pa.array(catalogue.items.tokens, pa.string())
        self._titles = pa.array(catalogue.items.titles, pa.string())

    def find(self, text: str, limit: int) -> list[int]:
        """At most `limit` item ids: the item of this id, those that begin with the text, then the others.

        An empty text finds the first items.
        """
        if not text:
            return list(range(1, min(limit + 1, len(self._tokens))))
        rank = np.full(len(self._tokens), 3, dtype=np.int8)
        for column in (self._tokens, self._titles):
            for value, matches in (
                (2, pc.match_substring(column, text, ignore_case=True)),
                (1, pc.starts_with(column, text, ignore_case=True)),
            ):
                found = pc.fill_null(matches, False).to_numpy(zero_copy_only=False)
                rank[found] = np.minimum(rank[found], value)
        rank[0] = 3
        if text in self._index:
            rank[self._index[text]] = 0
        hits = np.flatnonzero(rank < 3)
        return hits[np.argsort(rank[hits], kind="stable")][:limit].tolist()
