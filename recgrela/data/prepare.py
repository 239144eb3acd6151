"""Turns events into packed interactions: k-core filter, ids, order, split."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from recgrela.data.catalogue import find_known
from recgrela.data.cuts import find_cuts
from recgrela.data.events import Events
from recgrela.data.interactions import Interactions
from recgrela.data.reading import check_left, describe_reading, rule_settings, without_duplicates
from recgrela.data.sorting import stable_order
from recgrela.data.split import TRAIN, LeaveOneOutCounts, Splitter, as_split
from recgrela.settings.data import DataConfig, Order
from recgrela.system.errors import DataError


def k_core(
    users: np.ndarray,
    items: np.ndarray,
    user_range: tuple[int, int | None],
    item_range: tuple[int, int | None],
) -> np.ndarray:
    """Rows that pass the iterative k-core filter, as in RecBole's ``_filter_by_inter_num``.

    Each round drops the users and items with too few or too many events, until nothing changes. Repeated
    (user, item) events all count.

    Args:
        users: [n] int32 user indices.
        items: [n] int32 item indices.
        user_range: minimum and maximum number of events of a user; None for no maximum.
        item_range: the same for items.

    Returns:
        [m] row numbers, ascending.
    """
    rows = np.arange(users.size)
    while rows.size:
        keep = _within(users[rows], user_range) & _within(items[rows], item_range)
        if keep.all():
            break
        rows = rows[keep]
    return rows


def _within(codes: np.ndarray, limits: tuple[int, int | None]) -> np.ndarray:
    return in_range(np.bincount(codes), limits)[codes]


def in_range(counts: np.ndarray, limits: tuple[int, int | None]) -> np.ndarray:
    """Whether counts [n] are within a minimum and a maximum; None for no maximum."""
    low, high = limits
    return (counts >= low) & (True if high is None else counts <= high)


def by_first_appearance(codes: np.ndarray, tokens: list[str]) -> tuple[np.ndarray, list[str]]:
    """Renumber [n] codes from 0 in order of first occurrence, and drop the tokens that do not occur."""
    first = np.full(len(tokens), codes.size)
    first[codes[::-1]] = np.arange(codes.size)[::-1]  # reversed, because the last assignment wins
    present = np.argsort(first, kind="stable")[: np.count_nonzero(first < codes.size)]
    new = np.empty(len(tokens), dtype=np.int32)
    new[present] = np.arange(present.size, dtype=np.int32)
    return new[codes], [tokens[code] for code in present]


def compared_times(times: np.ndarray, order: Order) -> np.ndarray:
    """The times [n] that the order and the cuts of a split compare.

    Order "recbole" compares times as float32, converted from float64 as RecBole does: near 1e9, events within
    64 s of each other are ties. With order "file" all are.
    """
    if order == "file":
        return np.zeros_like(times)
    return times.astype(np.float64).astype(np.float32) if order == "recbole" else times


def item_ranks(item_ids: list[str]) -> np.ndarray:
    """The place [n] int32 of each original item id: by number if all are whole numbers, otherwise by text."""
    numbers = all(re.fullmatch("-?[0-9]{1,4000}", item) for item in item_ids)
    keys: list[Any] = [(int(item), item) for item in item_ids] if numbers else item_ids
    ranks = np.empty(len(keys), dtype=np.int32)
    ranks[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys), dtype=np.int32)
    return ranks


def time_order(
    users: np.ndarray,
    times: np.ndarray,
    phases: np.ndarray | None = None,
    ties: np.ndarray | None = None,
) -> np.ndarray:
    """Row numbers [n] sorted by user, then by phase if given, then by time; ties keep the file order.

    Args:
        users: [n] numbers of users.
        times: [n], as `compared_times` returns them.
        phases: [n], those of the files that events are from; None: by time alone.
        ties: [n], what orders events of the same time before the file does; None: nothing.
    """
    return stable_order(*(key for key in (ties, times, phases, users) if key is not None))


def filter_settings(config: DataConfig) -> dict[str, int | None]:
    """The settings of the k-core filter by name; there is none for files that are split already."""
    if config.split == "files":
        return {"min_user_events": 0, "max_user_events": None, "min_item_events": 0, "max_item_events": None}
    limits = ("min_user_events", "max_user_events", "min_item_events", "max_item_events")
    return {name: getattr(config, name) for name in limits}


def filter_ranges(config: DataConfig) -> tuple[tuple[int, int | None], tuple[int, int | None]]:
    """The range of the number of events of a user, and of an item."""
    low_user, high_user, low_item, high_item = filter_settings(config).values()
    return (low_user or 0, high_user), (low_item or 0, high_item)


def split_settings(config: DataConfig) -> dict[str, float | str | None]:
    """The settings of the split by name."""
    settings: dict[str, float | str | None] = {"split": config.split}
    if config.split != "leave_one_out":
        settings["split_targets"] = config.target_rule
    if config.split == "time":
        names = ("split_quantile", "split_date", "split_valid_date")
        settings |= {name: getattr(config, name) for name in names}
    return settings


def nothing_left(source: str, events: int, config: DataConfig) -> DataError:
    """The error if no events are left."""
    settings = filter_settings(config)
    shown = ", ".join(f"{name}={value}" for name, value in settings.items() if value is not None)
    return DataError(f"{source}: none of the {events} events are left after filtering ({shown})")


def describe(
    source: str,
    kind: str,
    config: DataConfig,
    users: int,
    items: int,
    events: int,
    events_read: int,
    split: dict[str, Any],
) -> dict[str, Any]:
    """`Interactions.description`; users and items include padding ids. `split` has facts of the split."""
    settings = filter_settings(config)
    description: dict[str, Any] = {
        "source": source,
        "format": kind,
        "filter": settings,
        "order": config.order,
        "users": users,
        "items": items,
        "events": events,
        "events_read": events_read,
        "split": split_settings(config) | split,
    }
    known = find_known(source)
    has_rules = rule_settings(config) != rule_settings(DataConfig())
    if known is not None and known.filter == settings and not has_rules:
        description["published"] = known.counts
    return description


def prepare(events: Events, config: DataConfig, phases: np.ndarray | None = None) -> Interactions:
    """Filter, number, sort, split and pack events.

    Args:
        events: the events.
        config: the settings.
        phases: [n] uint8, the phase of each event if files say it; then it is part of the order.

    Raises:
        DataError: no events are left, or the split has no targets.
    """
    events, kept = without_duplicates(events, config)
    phases = phases if kept is None or phases is None else phases[kept]
    check_left(events.source, events.users.size, events.dropped)
    rows = k_core(events.users, events.items, *filter_ranges(config))
    if rows.size == 0:
        raise nothing_left(events.source, events.users.size, config)
    users, user_ids = by_first_appearance(events.users[rows], events.user_tokens)
    items, item_ids = by_first_appearance(events.items[rows], events.item_tokens)
    times = compared_times(events.times[rows], config.order)
    phases = None if phases is None else phases[rows]
    ties = item_ranks(item_ids)[items] if config.order == "item" else None
    sort = time_order(users, times, phases, ties)
    items = items[sort] + np.int32(1)
    events_of_users = np.bincount(users)
    split, facts = None, dict[str, Any]()
    if config.split == "leave_one_out":
        counts = LeaveOneOutCounts()
        counts.add(events_of_users)
        facts = counts.describe()
    else:
        cuts: dict[str, Any] = {}
        if phases is None:
            found = find_cuts(lambda: [times], config, events.source, events.ticks)
            phases, cuts = found.phases(times), found.describe()
        phases = phases[sort]
        is_trained = np.zeros(len(item_ids) + 1, dtype=bool)
        is_trained[items[phases == TRAIN]] = True
        splitter = Splitter(config.target_rule, is_trained)
        split = as_split(splitter.add(events_of_users, phases, items))
        facts = cuts | splitter.describe(events.source) | {"sha256": split.sha256()}
    titles = [None, *map(events.titles.get, item_ids)] if events.titles else None
    totals = (len(user_ids) + 1, len(item_ids) + 1, rows.size, events.events_read)
    description = describe(events.source, events.format, config, *totals, facts)
    return Interactions(
        items=torch.from_numpy(items),
        offsets=torch.from_numpy(np.concatenate(([0], np.cumsum(events_of_users)))),
        user_ids=user_ids,
        item_ids=["[PAD]", *item_ids],
        titles=titles,
        n_items=len(item_ids) + 1,
        sha256=events.sha256,
        description=description | describe_reading(events, config),
        dropped_users=frozenset(events.user_tokens).difference(user_ids),
        split=split,
    )
