"""Figures of the recommended items: how many items are recommended to anyone, and how popular they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recgrela.parallel.processes import Processes

_NEVER = torch.iinfo(torch.int32).max


@dataclass(frozen=True)
class ListFigures:
    """Figures of the lists of recommended items, one list for each target.

    Attributes:
        coverage: "coverage@k": the share of the catalogue's items that are among the first k of any list.
            Source: aggregate diversity, Adomavicius and Kwon (TKDE 2012); RecBole's ItemCoverage.
        popularity: "popularity@k": the mean number of training events of the items among the first k of all
            lists. Source: average recommendation popularity, Yin et al. (VLDB 2012); RecBole's
            AveragePopularity.
        masked_coverage, masked_popularity: the same with each user's seen items removed from the list.
        target_popularity: the mean number of training events of the targets, to compare with.
    """

    coverage: dict[str, float]
    popularity: dict[str, float]
    masked_coverage: dict[str, float]
    masked_popularity: dict[str, float]
    target_popularity: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "unmasked": self.coverage | self.popularity,
            "masked": self.masked_coverage | self.masked_popularity,
            "target_popularity": self.target_popularity,
        }


class ListCounts:
    """Counts recommended items; its memory depends on the number of items, not on that of lists.

    Args:
        popularity: [n_items] int64, the number of training events of each item, on the device of the lists.
        cutoffs: the cut-offs.
    """

    def __init__(self, popularity: Tensor, cutoffs: Sequence[int]) -> None:
        self.k, self._cutoffs, self._popularity = max(cutoffs), cutoffs, popularity
        device = popularity.device
        # The first place, from 1, at which any list has an item; the last column takes missing items.
        self._first = torch.full((2, len(popularity) + 1), _NEVER, dtype=torch.int32, device=device)
        self._places = torch.zeros(2, self.k, dtype=torch.int64, device=device)  # items at each place
        self._events = torch.zeros(2, self.k, dtype=torch.int64, device=device)  # and their training events
        self._targets = torch.zeros(2, dtype=torch.int64, device=device)  # targets and their training events

    def add(self, best: Tensor, target: Tensor) -> None:
        """Add the lists of a batch.

        Args:
            best: [2, B, k] int64, the best items, with all items ranked and with the seen ones removed; -1
                where there are fewer.
            target: [B] int64, the target items.
        """
        has_item = best >= 0
        self._places += has_item.sum(1)
        self._events += (self._popularity[best.clamp(min=0)] * has_item).sum(1)
        place = torch.arange(1, self.k + 1, dtype=torch.int32, device=best.device).expand(best.shape)
        index = torch.where(has_item, best, len(self._popularity))
        self._first.scatter_reduce_(1, index.flatten(1), place.flatten(1), "amin")
        self._targets[0] += len(target)
        self._targets[1] += self._popularity[target].sum()

    def figures(self, processes: Processes) -> ListFigures:
        """The figures of the lists of all processes, all of which call it."""
        all_places, all_events, totals = (
            processes.sum_(counted.cpu()) for counted in (self._places, self._events, self._targets)
        )
        first = torch.stack(processes.gather(self._first.cpu())).amin(0)[:, 1:-1]
        coverage, popularity = [], []
        for variant in range(2):
            places, events = all_places[variant].cumsum(0), all_events[variant].cumsum(0)
            found = [int((first[variant] <= k).sum()) / max(first.shape[1], 1) for k in self._cutoffs]
            means = [int(events[k - 1]) / max(int(places[k - 1]), 1) for k in self._cutoffs]
            coverage.append({f"coverage@{k}": x for k, x in zip(self._cutoffs, found, strict=True)})
            popularity.append({f"popularity@{k}": x for k, x in zip(self._cutoffs, means, strict=True)})
        targets, target_events = totals.tolist()
        return ListFigures(
            coverage[0], popularity[0], coverage[1], popularity[1], target_events / max(targets, 1)
        )
