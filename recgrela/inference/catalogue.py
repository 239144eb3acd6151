"""The items of a model by their original ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from recgrela.runs.items import Items
from recgrela.system.errors import DataError
from recgrela.system.suggest import near_miss
from recgrela.system.text import quote


class Catalogue:
    """Finds items by their original ids.

    Args:
        items: original ids and titles by item id; row 0 is padding.
    """

    def __init__(self, items: Items) -> None:
        self.items = items

    def __len__(self) -> int:
        """The number of items, without padding."""
        return len(self.items.tokens) - 1

    @cached_property
    def index(self) -> dict[str, int]:
        """Item ids by original id."""
        return {token: item for item, token in enumerate(self.items.tokens) if item > 0}

    def ids(self, tokens: Iterable[str]) -> np.ndarray:
        """Original ids -> item ids [n] int64; 0 for unknown ones."""
        return np.array([self.index.get(token, 0) for token in tokens], dtype=np.int64)

    def known_ids(self, tokens: Sequence[str], what: str = "item") -> np.ndarray:
        """`ids` of items that must be known.

        Raises:
            DataError: an item is unknown; the message begins with `what` and suggests a similar id, or the id
                of a title.
        """
        found = self.ids(tokens)
        for place in np.flatnonzero(found == 0)[:1]:
            token = tokens[place]
            if token in self.items.titles:
                same = self.items.tokens[self.items.titles.index(token)]
                raise DataError(f"{what} {quote(token)} is a title; use its id {quote(same)}")
            hint = near_miss(token, self.index)
            raise DataError(f"{what} {quote(token)} is not among the model's {len(self)} items{hint}")
        return found

    def allowed(self, allow: Sequence[str] | None, deny: Sequence[str] | None) -> Tensor | None:
        """The items that may be recommended, bool [n_items]; None if all may.

        Args:
            allow: original ids of the only items to recommend; None: all. Unknown ids are ignored, because a
                list of a shop has items that the model was not trained on.
            deny: original ids of items not to recommend.

        Raises:
            DataError: no item is left.
        """
        retired = self.items.retired
        if allow is None and not deny and not retired.any():
            return None
        mask = np.full(len(self.items.tokens), allow is None)
        if allow is not None:
            mask[self.ids(allow)] = True
        if deny:
            mask[self.ids(deny)] = False
        mask[retired] = False
        mask[0] = False
        if not mask.any():
            raise DataError("none of the model's items may be recommended; extend the allowed items")
        return torch.from_numpy(mask)
