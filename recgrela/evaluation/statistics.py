"""Statistics over users: intervals and paired tests by resampling, and Holm's correction.

Both draw once for all columns and are products of matrices, so that a table of many models is a matter of
seconds; the draws come from a fixed seed, so the same scores give the same figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

RESAMPLES = 10_000
SEED = 0
_PLACES = 1 << 22  # of a block of draws: 32 MiB


def bootstrap_interval(
    scores: np.ndarray, level: float = 0.95, resamples: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """The percentile bootstrap's interval of means over users, drawn with replacement.

    Args:
        scores: [U, K], users and columns; the columns share their draws.
        level: how often the interval is to hold the mean.
        resamples: draws of U users.

    Returns:
        low [K] and high [K]. Source: Efron (1979); Sakai, Evaluating evaluation metrics (SIGIR 2006).
    """
    users = len(scores)
    rng = np.random.default_rng(SEED)
    means = []
    for size in _blocks(users, resamples):
        drawn = rng.integers(users, size=(size, users)) + users * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users)
        means.append(counts @ scores / users)
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def sign_flip_test(differences: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """Two-sided paired randomisation test that two systems score users alike.

    If they do, each user's difference could as well have the other sign: p is the share of random signs whose
    sum is as far from zero as the differences' own, these being one of the draws (so p is never 0).

    Args:
        differences: [U, K], each user's difference of scores between two systems; columns share the signs.
        resamples: draws of U signs.

    Returns:
        p [K]. Source: Smucker, Allan and Carterette (CIKM 2007).
    """
    users = len(differences)
    rng = np.random.default_rng(SEED)
    # Sums that are equal but for rounding count as equal.
    observed = np.abs(differences.sum(0)) - 1e-9 * np.abs(differences).sum(0)
    as_far = np.zeros(differences.shape[1], dtype=np.int64)
    for size in _blocks(users, resamples):
        signs = 2.0 * rng.integers(2, size=(size, users), dtype=np.int8) - 1.0
        as_far += (np.abs(signs @ differences) >= observed).sum(0)
    return (1 + as_far) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of several tests, corrected so that the chance of any false alarm is bounded (Holm, 1979)."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for done, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, (len(p_values) - done) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted


def _blocks(users: int, resamples: int) -> Iterator[int]:
    """Sizes of blocks of draws that add up to `resamples`."""
    most = max(1, _PLACES // users)
    for start in range(0, resamples, most):
        yield min(most, resamples - start)
