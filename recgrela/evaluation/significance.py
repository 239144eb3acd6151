"""Bootstrap intervals and paired tests over users, and Holm's correction.

Users are the units that are drawn: the targets of a user are not independent, so they stay together.

All columns share their random draws, and each resampling is a matrix product, so a table of many models takes
seconds. The random seed is fixed: the same scores always give the same figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

RESAMPLES = 10_000
SEED = 0
_BLOCK_ELEMENTS = 1 << 22  # draws in a block: 32 MiB


def bootstrap_interval(
    scores: np.ndarray,
    users: np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap intervals of means over targets.

    Args:
        scores: [N, K], a row for each target; columns share their draws.
        users: [N] the user of each target; None: each target is of another user.
        level: confidence level.
        resamples: number of resamples of U users, drawn with replacement. Each brings all its targets, and
            the mean is over these targets.

    Returns:
        low [K] and high [K]. Source: Efron (1979); Sakai, Evaluating evaluation metrics (SIGIR 2006); for
        several targets of a user the cluster bootstrap, Davison and Hinkley (1997), 3.8.
    """
    scores, targets = by_user(scores, users)
    number = len(scores)
    rng = np.random.default_rng(SEED)
    means = []
    for size in _blocks(number, resamples):
        drawn = rng.integers(number, size=(size, number)) + number * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * number).reshape(size, number)
        means.append(counts @ scores / (counts @ targets)[:, None])
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def sign_flip_test(
    differences: np.ndarray, users: np.ndarray | None = None, resamples: int = RESAMPLES
) -> np.ndarray:
    """Two-sided paired randomization test of the hypothesis that two systems score users equally well.

    Under the hypothesis the sign of each user's difference is random. p is the share of random signs for
    which the sum is at least as far from zero as the observed sum. The observed signs count as one draw, so p
    is never 0.

    Args:
        differences: [N, K], each target's difference of scores between two systems; columns share their
            signs.
        users: [N] the user of each target, whose targets have one sign; None: each is of another user.
        resamples: number of draws of U signs.

    Returns:
        p [K]. Source: Smucker, Allan and Carterette (CIKM 2007).
    """
    differences, _ = by_user(differences, users)
    number = len(differences)
    rng = np.random.default_rng(SEED)
    # The tolerance makes sums that differ only by rounding count as equal.
    observed = np.abs(differences.sum(0)) - 1e-9 * np.abs(differences).sum(0)
    as_far = np.zeros(differences.shape[1], dtype=np.int64)
    for size in _blocks(number, resamples):
        signs = 2.0 * rng.integers(2, size=(size, number), dtype=np.int8) - 1.0
        as_far += (np.abs(signs @ differences) >= observed).sum(0)
    return (1 + as_far) / (1 + resamples)


def by_user(values: np.ndarray, users: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The sums of values [N, K] over the targets of each user, [U, K], and the numbers of targets, [U]."""
    if users is None:
        return values, np.ones(len(values), dtype=np.int64)
    _, place, targets = np.unique(users, return_inverse=True, return_counts=True)
    if len(targets) == len(values):  # one target each
        return values, targets
    sums = [np.bincount(place, column, len(targets)) for column in values.T]
    return np.stack(sums, axis=1), targets


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of several tests, corrected to bound the chance of any false positive (Holm, 1979)."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for done, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, (len(p_values) - done) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted


def _blocks(users: int, resamples: int) -> Iterator[int]:
    """Sizes of blocks of draws that sum to `resamples`."""
    max_size = max(1, _BLOCK_ELEMENTS // users)
    for start in range(0, resamples, max_size):
        yield min(max_size, resamples - start)
