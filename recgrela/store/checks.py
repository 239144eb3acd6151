"""Checksums of stored rows: CRC-32 of all values of a row and of the ids that it refers to.

Users, items and models enter by the `text_check` of their ids. Values of wrong types, as a damaged row can
have, raise TypeError, AttributeError or struct.error.
"""

from __future__ import annotations

import struct
from zlib import crc32

_pack_event = struct.Struct("<IIdq").pack
_ID = struct.Struct("<IIq")
_USER = struct.Struct("<Iqqqd")
_STATE = struct.Struct("<IIqq")
WRONG_TYPE = (TypeError, AttributeError, struct.error)


def text_check(text: str) -> int:
    """Checksum of a text."""
    return crc32(text.encode())


def event_check(user: int, item: int, time: float, arrival: int) -> int:
    """Checksum of an event. `arrival` is the number of the user's events that arrived before."""
    return crc32(_pack_event(user, item, time, arrival))


def id_check(user: int, id: str, arrival: int) -> int:
    """Checksum of the idempotency key of the user's event of that arrival."""
    return crc32(_ID.pack(user, text_check(id), arrival))


def user_check(user: int, number: int, revision: int, count: int, last: float) -> int:
    """Checksum of a user's row: number, revision, number of events, and time of the last one."""
    return crc32(_USER.pack(user, number, revision, count, last))


def state_check(user: int, model: int, revision: int, folded: int, state: bytes) -> int:
    """Checksum of a model's state of a user."""
    return crc32(state, crc32(_STATE.pack(user, model, revision, folded)))
