"""Original ids in files: read on demand, and found by their hash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa

from recgrela.data.mapped import MappedArray
from recgrela.data.permutation import hash64

_AT_ONCE = 1 << 16


class MappedIds(Sequence[str]):
    """The original ids of the users; those without events after filtering follow, and can only be found.

    Args:
        text: the ids as UTF-8, end to end.
        ends: [n + 1] int64; id i is ``text[ends[i]:ends[i + 1]]``.
        hashes: [n, 2] uint64, the hash of every id and its number, sorted.
        num_users: the number of users with events.
    """

    def __init__(self, text: MappedArray, ends: MappedArray, hashes: MappedArray, num_users: int) -> None:
        self._text, self._ends, self._hashes, self._num_users = text, ends, hashes, num_users

    def __len__(self) -> int:
        return self._num_users

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(self._num_users))).to_pylist()
        row = range(self._num_users)[index]  # also negative; raises IndexError
        return self.take(np.array([row]))[0].as_py()

    def __iter__(self) -> Iterator[str]:
        for first in range(0, self._num_users, _AT_ONCE):
            yield from self[first : first + _AT_ONCE]

    def take(self, rows: np.ndarray) -> pa.Array:
        """The ids of some rows [B] int64, as Arrow strings."""
        bounds = self._ends.ranges(rows, np.full_like(rows, 2)).reshape(-1, 2)
        lengths = bounds[:, 1] - bounds[:, 0]
        text = self._text.ranges(bounds[:, 0], lengths)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
        return pa.Array.from_buffers(pa.large_string(), rows.size, buffers)

    def find(self, token: str) -> int | None:
        """The number of an id, at least ``len(self)`` if the user has no events; None if it is unknown."""
        text = np.frombuffer(token.encode(), np.uint8)
        wanted = int(hash_ids(text, np.array([0, text.size]))[0])
        low, high = 0, len(self._hashes)
        while low < high:  # the first record that is not below `wanted`
            middle = (low + high) // 2
            if int(self._hashes.rows(np.array([middle]))[0, 0]) < wanted:
                low = middle + 1
            else:
                high = middle
        while low < len(self._hashes):
            found, number = self._hashes.rows(np.array([low]))[0].tolist()
            if found != wanted:
                return None
            if self.take(np.array([number]))[0].as_py() == token:
                return number
            low += 1
        return None


def id_bytes(ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The text [bytes] uint8 of [n] ids, and where each begins, [n + 1] int64."""
    ids = ids.cast(pa.large_string())
    _, offsets, text = ids.buffers()
    places = np.frombuffer(offsets, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    if text is None or not len(ids):
        return np.empty(0, np.uint8), np.zeros(len(ids) + 1, np.int64)
    return np.frombuffer(text, np.uint8)[places[0] : places[-1]], places - places[0]


def hash_ids(text: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A hash [n] uint64 of each id: 64-bit FNV-1a of its bytes, then SplitMix64's mixing."""
    begins, lengths = places[:-1], np.diff(places)
    found = np.full(lengths.size, 0xCBF29CE484222325, dtype=np.uint64)
    rows = np.flatnonzero(lengths)
    place = 0
    while rows.size:
        found[rows] = (found[rows] ^ text[begins[rows] + place]) * np.uint64(0x100000001B3)
        place += 1
        rows = rows[lengths[rows] > place]
    return hash64(found, np.uint64(0))
