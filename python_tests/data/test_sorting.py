"""The stable order of events, compared with np.lexsort."""

from __future__ import annotations

import numpy as np
import pytest

from recgrela.data.sorting import stable_order

KINDS = {
    "seconds": lambda random, n: random.integers(10**9, 10**9 + 9, n),
    "negative": lambda random, n: random.integers(-5, 5, n),
    "bytes": lambda random, n: random.integers(0, 3, n).astype(np.uint8),
    "float32": lambda random, n: random.integers(-5, 5, n).astype(np.float32) / 3,
    "float64": lambda random, n: np.float64(1.5e9) + random.integers(-5, 5, n) / 4,
    "signs": lambda random, n: random.choice([-1e300, -1.0, -0.0, 0.0, 5e-324, 1.0, 1e300], n),
    "zeros": lambda random, n: np.zeros(n, dtype=np.int64),
    "whole range": lambda random, n: random.choice(np.array([-(2**63), -1, 0, 2**63 - 1]), n),
}


@pytest.mark.parametrize("size", [0, 1, 500])
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_is_that_of_lexsort(kind: str, size: int) -> None:
    random = np.random.default_rng(0)
    times, users = KINDS[kind](random, size), random.integers(0, 20, size).astype(np.int32)
    phases = random.integers(0, 3, size).astype(np.uint8)
    for keys in ((times,), (times, users), (times, phases, users)):
        before = [key.copy() for key in keys]
        assert stable_order(*keys).tolist() == np.lexsort(keys).tolist()
        assert all(np.array_equal(key, old) for key, old in zip(keys, before, strict=True))
