"""Item-based nearest neighbours."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from recgrela.data import Interactions
from recgrela.data.windows import Windows, gather
from recgrela.evaluation.trivial import TrivialModel, ranges, rows_of, training_windows

# Similarities are rounded to multiples of 1 / STEPS, so that sums of up to 2^13 of them are exact, and equal
# scores are equal in whatever order they are summed.
STEPS = 1 << 40
MAX_EVENTS = 2500  # of a user
MAX_PRODUCTS = 1 << 24  # of a block of items; bounds its co-occurrences in memory


class ItemKNN(TrivialModel):
    """Scores items by their cosine similarities with the distinct items of the history.

    The similarity of two items is that of their columns in the binary matrix of users and training items.
    Each item keeps its k most similar items; of equally similar ones, those with the lowest ids. An item's
    score is the sum of its similarities with the items of the history that keep it. Source: Deshpande and
    Karypis (TOIS 2004), without normalization.

    Time grows with the sum of the squares of the users' numbers of items, so only the last `max_events`
    training events of a user count.

    Args:
        data: the interactions.
        k: number of items that each item keeps.
        max_events: number of training events that count of each user.
    """

    name = "ItemKNN"

    def __init__(self, data: Interactions, k: int = 100, max_events: int = MAX_EVENTS) -> None:
        self.n_items = data.n_items
        users, items = distinct_events(data, max_events)
        by_user = _matrix(users, items, (data.n_users, self.n_items))
        counts = torch.from_numpy(np.bincount(items, minlength=self.n_items))
        products = np.bincount(users, minlength=data.n_users)[users]  # an event meets all items of its user
        order = np.argsort(items, kind="stable")
        users, items, products = users[order], items[order], products[order]
        begins = np.searchsorted(items, np.arange(self.n_items + 1))
        work = np.concatenate(([0], np.cumsum(products)))[begins]
        kept = [torch.zeros(0, dtype=torch.int64)]
        near, similarities = kept.copy(), [torch.zeros(0, dtype=torch.float64)]
        first = 0
        while first < self.n_items:
            fitting = int(np.searchsorted(work, work[first] + MAX_PRODUCTS, "right")) - 1
            last = min(max(fitting, first + 1), self.n_items)
            own = slice(begins[first], begins[last])
            by_item = _matrix(items[own] - first, users[own], (last - first, data.n_users))
            together = _product(by_item, by_user)
            rows, columns = together.indices()
            cosine = together.values() / (counts[first + rows] * counts[columns]).double().sqrt()
            cosine[first + rows == columns] = 0  # an item is no neighbour of its own
            cosine.mul_(STEPS).round_().div_(STEPS)
            best = _largest(rows, cosine, last - first, k)
            kept.append(rows[best].bincount(minlength=last - first))
            near.append(columns[best])
            similarities.append(cosine[best])
            first = last
        self._begins = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(kept).cumsum(0)])
        self._near, self._similarities = torch.cat(near), torch.cat(similarities)

    def score_packed(self, items: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """See `TrivialModel`."""
        size = cu_seqlens.numel() - 1
        distinct = torch.unique(rows_of(cu_seqlens) * self.n_items + items)
        rows, items = distinct // self.n_items, distinct % self.n_items
        begins = self._begins[items]
        lengths = self._begins[items + 1] - begins
        found = ranges(begins, lengths)
        places = rows.repeat_interleave(lengths) * self.n_items + self._near[found]
        scores = torch.zeros(size * self.n_items, dtype=torch.float64)
        return scores.index_add_(0, places, self._similarities[found]).view(size, self.n_items)


def distinct_events(data: Interactions, max_events: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs of user rows [n] int64 and items [n] int64, by user and then by item.

    Args:
        data: the interactions.
        max_events: number of last training events of each user that are taken, at least 1.
    """
    source, found = data.item_source("cpu"), [np.empty(0, dtype=np.int64)]
    for rows, starts, targets in training_windows(data):
        lengths = np.minimum(targets, max_events - 1)
        batch = gather(source, Windows(rows, starts + targets - lengths, lengths), "last", 0)
        users = batch.users.repeat_interleave(batch.cu_seqlens.diff())
        keys = (users * data.n_items + batch.items, batch.users * data.n_items + batch.target)
        found.append(torch.cat(keys).unique().numpy())
    pairs = np.concatenate(found)
    return pairs // data.n_items, pairs % data.n_items


def _matrix(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> Tensor:
    """A sparse matrix of ones at places that are sorted by row and then by column."""
    places = torch.from_numpy(np.stack((rows, columns)))
    return torch.sparse_coo_tensor(
        places, torch.ones(len(rows)), shape, is_coalesced=True, check_invariants=False
    )


def _product(first: Tensor, second: Tensor) -> Tensor:
    """The product of two sparse matrices."""
    with warnings.catch_warnings():  # PyTorch computes it by way of CSR tensors, and warns that these are new
        warnings.filterwarnings("ignore", "Sparse CSR tensor support")
        return torch.sparse.mm(first, second).coalesce()


def _largest(rows: Tensor, values: Tensor, size: int, k: int) -> Tensor:
    """The places of the k largest positive values of each row, ascending; of equal values the first ones."""
    kept = values > 0
    ends = rows.bincount(minlength=size).cumsum(0)
    long = rows[kept].bincount(minlength=size) > k
    begins = ends - ends.diff(prepend=ends.new_zeros(1))
    for begin, end in zip(begins[long].tolist(), ends[long].tolist(), strict=True):
        best = values[begin:end].sort(descending=True, stable=True).indices[:k]
        kept[begin:end] = False
        kept[best + begin] = True
    return kept.nonzero()[:, 0]
