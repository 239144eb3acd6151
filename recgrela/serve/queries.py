"""What the engine is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from recgrela.system.errors import DataError


class NotFound(DataError):
    """A user without events, or an item that the model does not know."""


@dataclass(frozen=True)
class Receipt:
    """What became of an event.

    Attributes:
        stored: False if the user already has an event of this id.
        known: whether the model knows the item. An unknown one stays in the log and counts once a model knows
            it.
    """

    stored: bool
    known: bool


@dataclass(frozen=True)
class Query:
    """A request for recommendations: for a stored user or after a given history.

    Attributes:
        user: a user of the store; None: `history` is given.
        history: original item ids, oldest first.
        k: number of items, at least 1.
        exclude_seen: whether items of the user's whole history are excluded.
        allow: original ids of the only items to recommend; None: all. Unknown ids are ignored.
        deny: original ids of items not to recommend.
    """

    user: str | None = None
    history: tuple[str, ...] = ()
    k: int = 10
    exclude_seen: bool = True
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()


class Scored(NamedTuple):
    """An item and its score; `item` is the original id, `title` may be unknown."""

    item: str
    title: str | None
    score: float


@dataclass(frozen=True)
class Found:
    """Recommendations.

    Attributes:
        items: best first; fewer than k if fewer may be recommended.
        length: number of items of the history that the model knows.
    """

    items: list[Scored]
    length: int
