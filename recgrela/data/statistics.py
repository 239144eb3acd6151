"""Statistics of events: what a data set has, and what decides whether it says anything about sequences.

Every function is a few passes over arrays and one sort, and returns plain values for JSON. Shares are
fractions of 1. Numbers of users and items do not count padding ids.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from recgrela.data.dates import to_iso, unit_of
from recgrela.data.events import Events
from recgrela.data.interactions import Interactions
from recgrela.data.prepare import filter_ranges, k_core
from recgrela.data.reading import without_duplicates
from recgrela.data.sorting import stable_order
from recgrela.settings.data import DataConfig

QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}
LATE = 0.9  # the quantile of all times that a global split by time often cuts at


class UserTimes(NamedTuple):
    """Times of the events that are left after the filter.

    Attributes:
        times: [n] times as in the source, by user and then in ascending order.
        offsets: [n_users + 1] int64; user u has times[offsets[u] : offsets[u + 1]].
        unit: units of the times in a second; None if they are no Unix times, as far as the last one shows.
    """

    times: np.ndarray
    offsets: np.ndarray
    unit: int | None


def user_times(events: Events, config: DataConfig) -> UserTimes | None:
    """Times of the events that a configuration keeps; None if it uses none, or all are equal."""
    events, _ = without_duplicates(events, config)
    rows = k_core(events.users, events.items, *filter_ranges(config))
    users, times = events.users[rows], events.times[rows]
    if config.order == "file" or times.size == 0 or times.min() == times.max():
        return None
    counts = np.bincount(users)
    offsets = np.concatenate(([0], np.cumsum(counts[counts > 0])))
    unit = events.ticks or unit_of(times.max().item())
    return UserTimes(times[stable_order(times, users)], offsets, unit)


def count(data: Interactions) -> dict[str, Any]:
    """Users, items, events, their mean number by user and by item, and the sparsity.

    The sparsity is 1 - events / (users * items), in which repeated events count each time.
    """
    users, items, events = data.n_users, data.n_items - 1, data.n_events
    return {
        "users": users,
        "items": items,
        "events": events,
        "mean_user_events": events / users,
        "mean_item_events": events / items,
        "sparsity": 1 - events / (users * items),
    }


def lengths(data: Interactions) -> dict[str, Any]:
    """Quantiles of the number of events of a user, and the share of users with fewer than three.

    Leave-one-out has no targets for users with fewer than three events.
    """
    found = np.diff(data.host_offsets())
    return {**quantiles(found), "below_3": float((found < 3).mean())}


def popularity(data: Interactions) -> dict[str, Any]:
    """How unequally events are spread over items.

    Returns:
        Quantiles of the number of events of an item; "gini", the Gini coefficient of these numbers, 0 if all
        are equal; "top_1%" and "top_10%", the share of events of the most frequent items, at least one item;
        "once", the share of items with a single event.
    """
    counts = np.sort(item_counts(data))
    size, total = counts.size, int(counts.sum())
    ranks = np.arange(1, size + 1, dtype=np.float64)
    gini = 2 * float(ranks @ counts) / (size * total) - (size + 1) / size
    top = {f"top_{share:.0%}": counts[-max(round(share * size), 1) :].sum() / total for share in (0.01, 0.1)}
    once = float((counts == 1).mean())
    return {**quantiles(counts), "gini": gini, **{k: float(v) for k, v in top.items()}, "once": once}


def repeats(data: Interactions) -> dict[str, Any]:
    """How often users return to items.

    Returns:
        "events", the share of events whose item the user had before; "immediate", the share of events whose
        item is that of the user's event just before; "targets", the share of test targets of leave-one-out
        that the user had before (None without targets).
    """
    items, offsets = data.items.cpu().numpy(), data.host_offsets()
    sizes = np.diff(offsets)
    keys = np.repeat(np.arange(sizes.size, dtype=np.int64), sizes) * data.n_items + items
    is_first = np.zeros(items.size, dtype=bool)
    is_first[np.unique(keys, return_index=True)[1]] = True
    immediate = np.count_nonzero(keys[1:] == keys[:-1])
    targets = offsets[1:][sizes >= 3] - 1
    return {
        "events": 1 - np.count_nonzero(is_first) / items.size,
        "immediate": immediate / items.size,
        "targets": float((~is_first[targets]).mean()) if targets.size else None,
    }


def ties(found: UserTimes) -> dict[str, Any]:
    """How many events have the exact time of another event of their user, so that their order is a guess.

    Returns:
        "events", the share of events that tie with the user's event before; "users", the share of users with
        a tie; "distinct_times", the number of different times of a user, divided by that of events, as a mean
        over users; "largest", the largest number of events of a user at one time.
    """
    times, offsets, _ = found
    starts = np.ones(times.size, dtype=bool)  # of groups of equal times
    starts[1:] = times[1:] != times[:-1]
    starts[offsets[:-1]] = True
    distinct = np.add.reduceat(starts, offsets[:-1], dtype=np.int64)
    sizes = np.diff(offsets)
    groups = np.diff(np.append(np.flatnonzero(starts), times.size))
    return {
        "events": 1 - np.count_nonzero(starts) / times.size,
        "users": float((distinct < sizes).mean()),
        "distinct_times": float((distinct / sizes).mean()),
        "largest": int(groups.max()),
    }


def span(found: UserTimes) -> dict[str, Any]:
    """First and last time, and the time that a user covers.

    Returns:
        "first", "last": times as in the source; "first_date", "last_date": as ISO dates in UTC, "days": their
        distance, and "median_user_days": the median over users of the time from the first to the last event,
        in days. The last four are None if times are no Unix times.
    """
    times, offsets, unit = found
    first, last = times.min().item(), times.max().item()
    facts: dict[str, Any] = {"first": first, "last": last}
    if unit is None:
        return facts | dict.fromkeys(("first_date", "last_date", "days", "median_user_days"))
    day = 86400 * unit
    covered = times[offsets[1:] - 1].astype(np.float64) - times[offsets[:-1]]
    return facts | {
        "first_date": to_iso(first, unit),
        "last_date": to_iso(last, unit),
        "days": (last - first) / day,
        "median_user_days": float(np.median(covered)) / day,
    }


def leakage(found: UserTimes) -> dict[str, Any] | None:
    """How much leave-one-out lets a model learn from the future, compared with one cut in time for all users.

    Returns:
        "targets_before_90%": the share of test targets that are earlier than the 90 % quantile of all times,
        where a global cut would have all of them later; "training_after_median_target": the share of training
        events that are later than the median test target; "training_after_target": the share of training
        events later than a test target, as a mean over targets. None without targets.
    """
    times, offsets, _ = found
    sizes = np.diff(offsets)
    ends = offsets[1:][sizes >= 3]
    if ends.size == 0:
        return None
    targets = times[ends - 1]
    is_training = np.ones(times.size, dtype=bool)
    is_training[ends - 1] = is_training[ends - 2] = False
    training = np.sort(times[is_training])
    later = training.size - np.searchsorted(training, targets, side="right")
    return {
        "targets_before_90%": float((targets < _quantile(times, LATE)).mean()),
        "training_after_median_target": float((training > _quantile(targets, 0.5)).mean()),
        "training_after_target": float((later / training.size).mean()),
    }


def item_counts(data: Interactions) -> np.ndarray:
    """The number of events of every item, [n_items - 1] int64, without the padding item."""
    return np.bincount(data.items.cpu().numpy(), minlength=data.n_items)[1:]


def quantiles(values: np.ndarray) -> dict[str, Any]:
    """The mean of [n] integers and their quantiles: of n sorted values, number floor((n - 1) q) from 0."""
    ordered = np.sort(values)
    found = {name: ordered[int((values.size - 1) * q)].item() for name, q in QUANTILES.items()}
    return {"mean": float(values.mean()), **found}


def _quantile(values: np.ndarray, q: float) -> Any:
    place = int((values.size - 1) * q)
    return np.partition(values, place)[place]
