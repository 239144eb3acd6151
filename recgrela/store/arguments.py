"""Arguments of a store's methods, checked. Each function raises DataError, which names the argument."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import Any

from recgrela.store.columns import text_fault
from recgrela.system.errors import DataError

Entry = tuple[str, int, int, bytes]  # user, revision, folded, state
LIMIT = 2**63  # of numbers that a store holds


def valid_text(name: str, text: str) -> str:
    """An id that is not empty and is valid Unicode."""
    if fault := text_fault(text):
        raise DataError(f"{name} {fault}")
    return text


def texts(name: str, values: Iterable[str]) -> list[str]:
    """A list of ids. A text is no list, although Python iterates over its characters."""
    return [valid_text(f"{name}[{i}]", text) for i, text in enumerate(_listed(name, values))]


def asked_items(asked: Iterable[tuple[str, Iterable[str]]]) -> list[tuple[str, list[str]]]:
    """Users, and the items to look for."""
    pairs = []
    for i, pair in enumerate(_listed("asked", asked)):
        user, items = _parts(f"asked[{i}]", pair, ("user", "items"))
        pairs.append((valid_text(f"asked[{i}]: user", user), texts(f"asked[{i}]: items", items)))
    return pairs


def number_of_events(last: int | None) -> int | None:
    """A number of events, at least 0, or None."""
    if last is None:
        return None
    number = _integer("last", last)
    if number < 0:
        raise DataError(f"last is {number}; give a number of at least 0, or None for all events")
    return min(number, LIMIT - 1)


def valid_entries(entries: Iterable[Entry]) -> list[Entry]:
    """Entries of `Store.save` as Python's own types, without those whose numbers no log has."""
    valid = []
    for i, entry in enumerate(_listed("entries", entries)):
        name = f"entries[{i}]"
        user, revision, folded, state = _parts(name, entry, ("user", "revision", "folded", "state"))
        user = valid_text(f"{name}: user", user)
        revision, folded = _integer(f"{name}: revision", revision), _integer(f"{name}: folded", folded)
        try:
            state = bytes(memoryview(state))  # bytes(5) would be five zeros
        except TypeError as error:
            raise DataError(f"{name}: state is of {type(state).__name__}; it must be bytes") from error
        if 0 <= revision < LIMIT and 0 < folded < LIMIT:
            valid.append((user, revision, folded, state))
    return valid


def _listed(name: str, values: Iterable[Any]) -> list[Any]:
    if isinstance(values, (str, bytes)):
        raise DataError(f"{name} is {values!r}; give a list")
    try:
        return list(values)
    except TypeError as error:
        raise DataError(f"{name} is {values!r}; give a list") from error


def _parts(name: str, value: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)) or len(value) != len(names):
        raise DataError(f"{name} is {value!r}; give ({', '.join(names)})")
    return tuple(value)


def _integer(name: str, value: Any) -> int:
    try:
        return index(value)
    except TypeError as error:
        raise DataError(f"{name} is {value!r}; it must be an integer") from error
