"""Bytes of events and states in Redis: numbers big-endian, a checksum, then the content."""

from __future__ import annotations

import struct
from zlib import crc32

from recgrela.store.events import Event

_TIME = struct.Struct(">d")
_STATE = struct.Struct(">QQ")
_CRC = struct.Struct(">I")


def pack_event(user: bytes, item: bytes, time: float, id: bytes | None) -> bytes:
    """Time, checksum, length of the item in bytes (times 2, plus 1 if there is an id), item, id."""
    content = _length(2 * len(item) + (id is not None)) + item + (id or b"")
    moment = _TIME.pack(time)
    return moment + _CRC.pack(crc32(content, crc32(moment, crc32(user)))) + content


def unpack_event(user: bytes, record: bytes) -> Event:
    """The event of a record. Raises ValueError if it is damaged."""
    moment, crc, content = record[:8], record[8:12], record[12:]
    if len(crc) < 4 or _CRC.unpack(crc)[0] != crc32(content, crc32(moment, crc32(user))):
        raise ValueError("wrong checksum")
    number = shift = start = 0
    while True:
        byte = content[start]
        number |= (byte & 127) << shift
        start, shift = start + 1, shift + 7
        if byte < 128:
            break
    stop = start + number // 2
    id = content[stop:].decode() if number % 2 else None
    return Event(user.decode(), content[start:stop].decode(), _TIME.unpack(moment)[0], id)


def pack_state(user: bytes, model: bytes, revision: int, folded: int, state: bytes) -> bytes:
    """Revision, folded, checksum, state."""
    numbers = _STATE.pack(revision, folded)
    return numbers + _CRC.pack(_state_crc(user, model, numbers, state)) + state


def unpack_state(user: bytes, model: bytes, record: bytes) -> bytes:
    """The state of a record. Raises ValueError if it is damaged."""
    numbers, crc, state = record[:16], record[16:20], record[20:]
    if len(crc) < 4 or _CRC.unpack(crc)[0] != _state_crc(user, model, numbers, state):
        raise ValueError("wrong checksum")
    return state


def _state_crc(user: bytes, model: bytes, numbers: bytes, state: bytes) -> int:
    return crc32(state, crc32(numbers, crc32(model, crc32(user))))


def _length(number: int) -> bytes:
    """A number in groups of 7 bits, the lowest first; all but the last one have the high bit set."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)
