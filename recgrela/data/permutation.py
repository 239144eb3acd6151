"""Random orders of any number of elements by arithmetic, without an array of all elements."""

from __future__ import annotations

import numpy as np

ROUNDS = 6
MIN_BITS = 6  # smaller halves mix badly
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def keys(*seed: int, count: int = 1) -> np.ndarray:
    """[count] uint64 keys, a pure function of some numbers of at least 0."""
    return np.random.SeedSequence(seed).generate_state(count, np.uint64)


def hash64(numbers: np.ndarray, key: np.uint64) -> np.ndarray:
    """A keyed hash [n] uint64 of [n] uint64 numbers: the output function of SplitMix64."""
    z = numbers * _GOLDEN + key
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


class Permutation:
    """A pseudorandom bijection of 0 .. size - 1.

    An alternating Feistel network permutes the numbers of the fewest bits that hold `size` numbers, and is
    applied again to results that are not below `size` (cycle walking; Black and Rogaway, 2002).

    Args:
        size: the number of elements, at least 1.
        seed: numbers of at least 0; the bijection is a pure function of them and of `size`.
    """

    def __init__(self, size: int, *seed: int) -> None:
        bits = max((size - 1).bit_length(), MIN_BITS)
        self.size = size
        self._low_bits = np.uint64(bits // 2)
        self._low_mask = np.uint64((1 << bits // 2) - 1)
        self._high_mask = np.uint64((1 << bits - bits // 2) - 1)
        self._keys = keys(*seed, count=ROUNDS)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """The elements [n] int64 at some places [n] of the order."""
        found = self._encrypt(places.astype(np.uint64))
        outside = np.flatnonzero(found >= self.size)
        while outside.size:
            found[outside] = again = self._encrypt(found[outside])
            outside = outside[again >= self.size]
        return found.view(np.int64)

    def _encrypt(self, numbers: np.ndarray) -> np.ndarray:
        low, high = numbers & self._low_mask, numbers >> self._low_bits
        for first, second in zip(self._keys[::2], self._keys[1::2], strict=True):
            high ^= hash64(low, first) & self._high_mask
            low ^= hash64(high, second) & self._low_mask
        return (high << self._low_bits) | low
