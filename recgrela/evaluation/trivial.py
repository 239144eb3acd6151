"""Models without weights, which show what a network adds: counts of training events rank the items.

All of them count training events only, and score the histories that networks get. Scores are float64, and
equal counts are equal scores, so that ties count against these models as against every other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from recgrela.data import EvalBatches, Interactions
from recgrela.data.windows import Windows, gather
from recgrela.evaluation.lists import ListCounts
from recgrela.evaluation.metrics import Ranking, RankingCounts, seen_targets, summarize
from recgrela.parallel.processes import Processes
from recgrela.parallel.score_blocks import pairs_removed, rank_targets, whole_scores
from recgrela.settings.train import CUTOFFS

USERS_AT_ONCE = 1 << 13
MAX_SCORES = 1 << 22  # scores in memory at a time


class TrivialModel(ABC):
    """A model that is computed from the training events in one pass, on the CPU.

    Attributes:
        name: its name in tables.
        n_items: number of rows of the item table, padding included.
    """

    name: ClassVar[str]
    n_items: int

    @abstractmethod
    def score_packed(self, items: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Scores of every item as the next one.

        Args:
            items: [T] int64 item ids, histories end to end, each from the oldest to the last event.
            cu_seqlens: [B + 1] int64; history b is items[cu_seqlens[b] : cu_seqlens[b + 1]], not empty.
            max_seqlen: the length of the longest history.

        Returns:
            [B, n_items] float64; column 0 is the padding item.
        """


class Popularity(TrivialModel):
    """Ranks items by their number of training events. Args: data: the interactions."""

    name = "popularity"

    def __init__(self, data: Interactions) -> None:
        self.n_items = data.n_items
        self.counts = data.train_item_counts().cpu().double()  # [n_items]

    def score_packed(self, items: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """See `TrivialModel`."""
        return self.counts.repeat(cu_seqlens.numel() - 1, 1)


class RepeatLast(Popularity):
    """Ranks the items of the history by their last event, the latest first, then all others by popularity."""

    name = "repeat last"

    def score_packed(self, items: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """See `TrivialModel`."""
        scores = super().score_packed(items, cu_seqlens, max_seqlen)
        recency = 1 + self.counts.max() + torch.arange(items.numel(), dtype=torch.float64)
        places = rows_of(cu_seqlens) * self.n_items + items
        scores.view(-1).scatter_reduce_(0, places, recency, "amax")
        return scores


class FollowLast(Popularity):
    """Ranks items by how often they followed the history's last item, equal counts by popularity.

    A Markov chain of first order, whose counts are the pairs of successive training events of a user. Source:
    the chain that Rendle, Freudenthaler and Schmidt-Thieme (WWW 2010) factorize.

    Args:
        data: the interactions.
    """

    name = "follow last"

    def __init__(self, data: Interactions) -> None:
        super().__init__(data)
        n, source, found = self.n_items, data.item_source("cpu"), [np.empty(0, dtype=np.int64)]
        for windows in training_windows(data):
            batch = gather(source, windows.take(windows.lengths > 0), "all", 0)
            found.append((batch.items * n + batch.target).numpy())
        # Distinct pairs as first * n_items + second, ascending.
        pairs, counts = np.unique(np.concatenate(found), return_counts=True)
        self._begins = torch.from_numpy(np.searchsorted(pairs, np.arange(n + 1) * n))
        self._followers, self._counts = torch.from_numpy(pairs % n), torch.from_numpy(counts)

    def score_packed(self, items: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """See `TrivialModel`."""
        scores = super().score_packed(items, cu_seqlens, max_seqlen)
        last = items[cu_seqlens[1:] - 1]
        begins = self._begins[last]
        lengths = self._begins[last + 1] - begins
        found, rows = ranges(begins, lengths), torch.arange(last.numel()).repeat_interleave(lengths)
        scores[rows, self._followers[found]] += self._counts[found] * (1 + self.counts.max())
        return scores


def rows_of(cu_seqlens: Tensor) -> Tensor:
    """The number of the history that each item belongs to, [T] int64, from offsets [B + 1]."""
    return torch.arange(cu_seqlens.numel() - 1).repeat_interleave(cu_seqlens.diff())


def ranges(begins: Tensor, lengths: Tensor) -> Tensor:
    """The numbers of ranges end to end: begins[b], begins[b] + 1, ..., `lengths[b]` of them."""
    shifts = begins - (lengths.cumsum(0) - lengths)
    total = int(lengths.sum())
    return torch.arange(total) + shifts.repeat_interleave(lengths, output_size=total)


def training_windows(data: Interactions) -> Iterator[Windows]:
    """All users with training events, `USERS_AT_ONCE` or fewer at a time.

    Returns:
        Windows of all training events of each user but the last one, which is the target; a window is empty
        if there is only one.
    """
    table = data.users
    for first in range(0, table.num_users, USERS_AT_ONCE):
        users = table.of_rows(np.arange(first, min(first + USERS_AT_ONCE, table.num_users)))
        windows = Windows(users.rows, users.begins, users.targets)
        if data.split is not None:  # leave-one-out has training events of every user
            windows = windows.take(data.split.of_rows(users.rows)[1][:, 0] > 0)
        if windows.users.size:
            yield windows


@torch.no_grad()
def rank_trivial(
    model: TrivialModel,
    batches: EvalBatches,
    cutoffs: Sequence[int] = CUTOFFS,
    popularity: Tensor | None = None,
) -> Ranking:
    """Rank the items for every target of a split, as `Ranker` does with a network.

    Args:
        model: the model.
        batches: the split, on the CPU, in one process.
        cutoffs: the cut-offs of the metrics.
        popularity: [n_items] int64, the training events of each item, for the figures of recommended items;
            None: without them.
    """
    counts, found = RankingCounts(torch.device("cpu"), cutoffs), []
    lists = None if popularity is None else ListCounts(popularity, cutoffs)
    size = max(1, MAX_SCORES // model.n_items)
    for batch in batches:
        rows, items = batches.seen(batch)
        for first, part in zip(range(0, batch.size, size), batch.parts(size, len), strict=True):
            own = (rows >= first) & (rows < first + size)
            seen = (rows[own] - first, items[own])
            scores = model.score_packed(part.items, part.cu_seqlens, part.max_seqlen)
            removed, k = pairs_removed(*seen, part.size), 0 if lists is None else lists.k
            ranked = rank_targets(whole_scores(scores), part.target, removed, k)
            if lists is not None:
                lists.add(ranked.best, part.target)
            ranks = counts.add(ranked, seen_targets(seen, part.target))
            found.append(torch.cat([ranks, part.target[None].int()]))
    *ranks_of, targets = torch.cat(found, 1)
    figures = None if lists is None else lists.figures(Processes())
    return summarize(torch.stack(ranks_of), targets, batches.users, counts.read(), cutoffs, figures)
