"""Small files of events in many layouts, and what must be read from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from recgrela.data import DataConfig, Interactions, load
from recgrela.system.errors import ConfigError, DataError

EVENTS = [("b", "20", "50"), ("a", "10", "300"), ("a", "20", "100"), ("b", "10", "60"), ("a", "30", "200")]
BY_TIME = {"b": ["20", "10"], "a": ["20", "30", "10"]}
BY_FILE = {"b": ["20", "10"], "a": ["10", "20", "30"]}
UNFILTERED = {"min_user_events": 0, "min_item_events": 0}


def lines(separator: str, events: list[tuple[str, ...]] = EVENTS) -> str:
    return "".join(separator.join(event) + "\n" for event in events)


def histories(data: Interactions) -> dict[str, list[str]]:
    items, begins = [data.item_ids[item] for item in data.items.tolist()], data.offsets.tolist()
    return {user: items[begins[row] : begins[row + 1]] for row, user in enumerate(data.user_ids)}


def read(path: Path, content: str | bytes, **settings: object) -> dict[str, list[str]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return histories(load(DataConfig(path=str(path), **UNFILTERED | settings)))


def fails(path: Path, content: str | bytes, expected: str, **settings: object) -> None:
    """Reading the content raises DataError or ConfigError with exactly this message after the path."""
    with pytest.raises((DataError, ConfigError)) as caught:
        read(path, content, **settings)
    assert str(caught.value).removeprefix(str(path)) == expected.replace("PATH", str(path))
