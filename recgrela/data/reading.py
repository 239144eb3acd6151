"""Duplicates among the events of a source, and the account of all events that reading dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from recgrela.data.events import Events
from recgrela.data.sorting import stable_order
from recgrela.settings.data import DataConfig
from recgrela.system.errors import DataError
from recgrela.system.text import quote

DUPLICATE = "duplicate"  # the reason why an event is dropped


def first_of_duplicates(users: np.ndarray, items: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Whether each of [n] events is the first one of its user, item and time."""
    order = stable_order(times, items, users)  # stable, so the first of equal events comes first
    same = np.ones(max(users.size - 1, 0), dtype=bool)
    for column in (users, items, times):
        found = column[order]
        same &= found[1:] == found[:-1]
    first = np.ones(users.size, dtype=bool)
    first[order[1:][same]] = False
    return first


def without_duplicates(events: Events, config: DataConfig) -> tuple[Events, np.ndarray | None]:
    """The events that ``data.duplicates`` keeps, and whether each of [n] events is kept; None if all are."""
    if config.duplicates == "keep":
        return events, None
    first = first_of_duplicates(events.users, events.items, events.times)
    count = int(np.count_nonzero(~first))
    if not count:
        return events, None
    arrays = {name: getattr(events, name)[first] for name in ("users", "items", "times")}
    return replace(events, **arrays, dropped=events.dropped | {DUPLICATE: count}), first


def rule_settings(config: DataConfig) -> dict[str, Any]:
    """The settings of the rules for single events by name."""
    return {
        "missing": sorted(config.missing_ids),
        "min_rating": config.min_rating,
        "duplicates": config.duplicates,
    }


def describe_reading(events: Events, config: DataConfig) -> dict[str, Any]:
    """The part of `Interactions.description` on single events; the arrays of the events are not used."""
    return {
        "rules": rule_settings(config),
        "dropped": dict(sorted(events.dropped.items())),
        "unusual_ids": dict(sorted(events.unusual.items())),
    }


def check_left(source: str, events: int, dropped: Mapping[str, int]) -> None:
    """Raises DataError if the rules for single events leave none."""
    if not events:
        reasons = ", ".join(f"{count:,} have {reason}" for reason, count in dropped.items())
        raise DataError(f"{source}: no event can be used: {reasons}")


def reading_notes(description: Mapping[str, Any]) -> list[str]:
    """Notes for the user about the events that were read, from `Interactions.description`."""
    notes = []
    if dropped := description.get("dropped"):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        total = sum(dropped.values())
        notes.append(f"note: {total:,} of {description['events_read']:,} events are dropped ({reasons})")
    if unusual := description.get("unusual_ids"):
        ids = ", ".join(f"{quote(token)} of {count:,} events" for token, count in unusual.items())
        notes.append(f"note: taken as ordinary ids: {ids}; set data.missing if they stand for no id")
    return notes
