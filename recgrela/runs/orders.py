"""The scores of one run under several orders of events, which choose other targets and histories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recgrela.data import Interactions, load
from recgrela.data.packed import PackedInteractions
from recgrela.evaluation.metrics import Ranking, metrics_of
from recgrela.evaluation.significance import bootstrap_interval
from recgrela.runs.consistency import check_same_events
from recgrela.runs.saved import SavedRun, evaluate
from recgrela.settings.data import ORDERS, Order, with_absolute_path
from recgrela.settings.train import metric_names
from recgrela.system.errors import DataError


@dataclass(frozen=True)
class OrderScores:
    """The scores on the test split under one order of events.

    Attributes:
        order: the order.
        ranking: the ranks and metrics.
        trained: share of the targets that are training events of the run, which has another order.
        intervals: for "unmasked" and "masked", [low, high] of each metric: 95 % percentile bootstrap
            intervals over users.
    """

    order: Order
    ranking: Ranking
    trained: float
    intervals: dict[str, dict[str, tuple[float, float]]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "order": self.order,
            "trained_targets": self.trained,
            **self.ranking.as_dict(),
            "intervals": self.intervals,
        }


def possible_orders(run: SavedRun) -> tuple[Order, ...]:
    """The orders that the data of a run can have, its own first.

    A run in the order of the file may have no times; a split by time, and duplicates, need them.
    """
    config, others = run.config.data, ORDERS
    if config.order == "file":
        others = ("file",)
    elif config.split == "time" or config.duplicates == "drop":
        others = tuple(order for order in ORDERS if order != "file")
    return (config.order, *(order for order in others if order != config.order))


def score_orders(
    run: SavedRun,
    own: Interactions,
    path: str | list[str] | None = None,
    orders: Sequence[Order] | None = None,
    batch_size: int = 256,
    cutoffs: Sequence[int] | None = None,
    after_order: Callable[[OrderScores], None] = lambda scores: None,
) -> list[OrderScores]:
    """Rank the items for the test targets of each order, with the weights of one run.

    Args:
        run: the run.
        own: its data, in its own order.
        path: the data if they have moved.
        orders: the orders; None: see `possible_orders`.
        batch_size: targets per batch.
        cutoffs: the cut-offs of the metrics; None: those of the run.
        after_order: called with the scores of each order.

    Raises:
        DataError: the data do not have an order, or are packed.
        RunError: the data are not those of the run.
    """
    if isinstance(own, PackedInteractions):
        raise DataError(f"{own.path}: packed data have one order; give their source with --data.path")
    config = run.config.data if path is None else replace(run.config.data, path=path)
    cutoffs = cutoffs or run.config.train.cutoff_numbers
    trained, found = train_pairs(own), []
    for order in orders or possible_orders(run):
        data = own
        if order != run.config.data.order:
            data = load(with_absolute_path(replace(config, order=order)))
            check_same_events(run.folder, data)
        ranking = evaluate(run, data, ("test",), batch_size, cutoffs=cutoffs)["test"]
        pairs = ranking.rows * data.n_items + ranking.items.numpy()
        share = 0.0 if data is own else float(np.isin(pairs, trained).mean())
        found.append(OrderScores(order, ranking, share, _intervals(ranking, cutoffs)))
        after_order(found[-1])
    return found


def train_pairs(data: Interactions) -> np.ndarray:
    """The user and the item of each training event as one number, user row * n_items + item id."""
    rows = np.repeat(np.arange(data.n_users), np.diff(data.host_offsets()))
    return np.delete(rows * data.n_items + data.items.cpu().numpy(), data.held_out())


def _intervals(ranking: Ranking, cutoffs: Sequence[int]) -> dict[str, dict[str, tuple[float, float]]]:
    names, scores = metric_names(cutoffs), [metrics_of(ranks, cutoffs).numpy() for ranks in ranking.ranks]
    low, high = bootstrap_interval(np.concatenate(scores, axis=1), ranking.rows)
    pairs = list(zip(low.tolist(), high.tolist(), strict=True))
    unmasked, masked = pairs[: len(names)], pairs[len(names) :]
    return {
        "unmasked": dict(zip(names, unmasked, strict=True)),
        "masked": dict(zip(names, masked, strict=True)),
    }
