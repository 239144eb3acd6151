"""The scores of one run under several orders of events, which choose other targets and histories."""

from __future__ import annotations

from collections.abc import Sequence
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
        trained: share of the targets that are training events of the run, which has another order. Equal
            events, of one user and one item, count as targets of the run first, if it has some.
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
    orders: Sequence[Order] | None = None,
    batch_size: int = 256,
    cutoffs: Sequence[int] | None = None,
    **paths: str | list[str] | None,
) -> list[OrderScores]:
    """Rank the items for the test targets of each order, with the weights of one run.

    Args:
        run: the run.
        own: its data, in its own order.
        orders: the orders; None: see `possible_orders`.
        batch_size: targets per batch.
        cutoffs: the cut-offs of the metrics; None: those of the run.
        paths: those of `load_data`, if the data have moved.

    Raises:
        DataError: the data do not have an order, or are packed.
        RunError: the data are not those of the run.
    """
    if isinstance(own, PackedInteractions):
        raise DataError(f"{own.path}: packed data have one order; give their source with --data.path")
    moved: dict[str, Any] = {name: path for name, path in paths.items() if path is not None}
    config = replace(run.config.data, **moved)
    cutoffs = cutoffs or run.config.train.cutoff_numbers
    held_out, found = event_pairs(own)[own.held_out()], []
    for order in orders or possible_orders(run):
        data = own
        if order != run.config.data.order:
            data = load(with_absolute_path(replace(config, order=order)))
            check_same_events(run.folder, data)
        ranking = evaluate(run, data, ("test",), batch_size, cutoffs=cutoffs)["test"]
        targets = ranking.rows * data.n_items + ranking.items.numpy()
        trained = share_trained(targets, held_out)
        found.append(OrderScores(order, ranking, trained, _intervals(ranking, cutoffs)))
    return found


def event_pairs(data: Interactions) -> np.ndarray:
    """The user and the item of each event as one number [n_events], user row * n_items + item id."""
    rows = np.repeat(np.arange(data.n_users), np.diff(data.host_offsets()))
    return rows * data.n_items + data.items.cpu().numpy()


def share_trained(targets: np.ndarray, held_out: np.ndarray) -> float:
    """The share of targets that are not among the events that a run held out; both are pairs, repeatedly."""
    wanted, counts = np.unique(targets, return_counts=True)
    held, copies = np.unique(held_out, return_counts=True)
    place = np.searchsorted(held, wanted).clip(max=held.size - 1)
    left = counts - np.where(held[place] == wanted, copies[place], 0)
    return float(left.clip(min=0).sum() / targets.size)


def _intervals(ranking: Ranking, cutoffs: Sequence[int]) -> dict[str, dict[str, tuple[float, float]]]:
    names, scores = metric_names(cutoffs), [metrics_of(ranks, cutoffs).numpy() for ranks in ranking.ranks]
    low, high = bootstrap_interval(np.concatenate(scores, axis=1), ranking.rows)
    pairs = list(zip(low.tolist(), high.tolist(), strict=True))
    unmasked, masked = pairs[: len(names)], pairs[len(names) :]
    return {
        "unmasked": dict(zip(names, unmasked, strict=True)),
        "masked": dict(zip(names, masked, strict=True)),
    }
