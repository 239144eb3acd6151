"""What a store takes and returns: events, and logs of users."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """A user's interaction with an item.

    Attributes:
        user: original id of the user, not empty.
        item: original id of the item, not empty.
        time: seconds since 1970, finite. The caller gives it; a store reads no clock.
        id: idempotency key within the user: an event is stored once, however often it is sent. Events
            without one are never duplicates.
    """

    user: str
    item: str
    time: float
    id: str | None = None


@dataclass(frozen=True, slots=True)
class UserLog:
    """What a model needs to continue for a user: the stored state and the items after it.

    Attributes:
        user: id of the user.
        revision: how often the user's log was changed before its end. A state belongs to one revision.
        folded: number of events, from the start of the log, that `state` contains; 0 without a state.
        state: bytes as given to `Store.save`, or None.
        pending: items of the log after the first `folded` ones, ordered by time, then by arrival.
    """

    user: str
    revision: int
    folded: int
    state: bytes | None
    pending: list[str]
