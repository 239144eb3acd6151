"""Orders by arithmetic: about uniform bijections, windows that cover every target, resumption."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from recgrela.data import sampling
from recgrela.data.permutation import Permutation
from recgrela.data.sampling import WholeWindows, prefix_windows
from recgrela.data.users import ArrayUserTable, target_counts
from recgrela.data.windows import Windows


@pytest.mark.parametrize("size", [*range(1, 10), 63, 64, 65, 127, 128, 129, 1000, 65_535, 65_537, 300_000])
def test_a_permutation_is_a_bijection(size):
    order = Permutation(size, 7, 1)(np.arange(size))
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(size))
    places = np.random.default_rng(0).integers(size, size=50)  # any part of it, in any order
    assert np.array_equal(Permutation(size, 7, 1)(places), order[places])


def test_a_permutation_of_many_elements():
    """A range of 2^62: no element occurs twice, and halves of all sizes are hit about equally often."""
    found = Permutation(2**62 - 57, 3)(np.arange(100_000))
    assert np.unique(found).size == 100_000 and found.min() >= 0 and found.max() < 2**62 - 57
    for bit in range(62):
        assert abs(np.mean(found >> bit & 1) - 0.5) < 0.01  # standard error 0.0016


@pytest.mark.parametrize("size", [3, 12, 65])
def test_every_element_is_about_equally_often_at_every_place(size):
    seeds = 500
    counts = np.zeros((size, size))
    for seed in range(seeds):
        counts[np.arange(size), Permutation(size, seed)(np.arange(size))] += 1
    freedom = (size - 1) ** 2
    chi_square = ((counts - seeds / size) ** 2).sum() / (seeds / size)
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_all_orders_of_four_elements_are_about_equally_likely():
    counts = Counter(tuple(Permutation(4, seed)(np.arange(4)).tolist()) for seed in range(1200))
    assert len(counts) == 24
    assert sum((count - 50) ** 2 / 50 for count in counts.values()) < 23 + 4 * np.sqrt(46)


def test_neighbours_do_not_stay_together():
    order = Permutation(10_000, 5)(np.arange(10_000))
    assert np.sum(np.abs(np.diff(order)) == 1) < 12  # 2 are expected
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.04


def random_users(seed: int) -> ArrayUserTable:
    """Users with few, many, and very many events, in random order."""
    random = np.random.default_rng(seed)
    counts = np.concatenate((random.integers(1, 6, 20), random.integers(1, 60, 20), [500]))
    counts = random.permutation(counts)[: random.integers(2, 42)]
    return ArrayUserTable(
        np.concatenate(
            (
                [0],
                np.cumsum(counts),
            )
        )
    )


def targets_of(users: ArrayUserTable, windows: Windows) -> np.ndarray:
    """The numbers of the targets of some windows."""
    table = users.of_rows(windows.users)
    first = table.first_targets + windows.starts - table.begins
    return np.concatenate([np.arange(a, a + n) for a, n in zip(first, windows.lengths, strict=True)])


@pytest.mark.parametrize("max_len", [1, 2, 7, 20, 1000])
def test_whole_windows_have_every_target_once(max_len):
    for seed in range(5):
        users = random_users(seed)
        for size in (9, 10_000):
            batches = list(WholeWindows(users, max_len, seed, 2).batches(size, 0))
            sizes = [batch.num_items for batch in batches]
            assert sizes == [size] * (users.num_targets // size) + [users.num_targets % size] * (
                users.num_targets % size > 0
            )
            assert all(np.all((batch.lengths > 0) & (batch.lengths <= max_len)) for batch in batches)
            found = [targets_of(users, batch) for batch in batches]
            assert np.array_equal(np.sort(np.concatenate([*found, []])), np.arange(users.num_targets))


@pytest.mark.parametrize("at_once", [7, sampling.SKIPPED_AT_ONCE])
def test_skipped_batches_change_nothing(monkeypatch, at_once):
    monkeypatch.setattr(sampling, "SKIPPED_AT_ONCE", at_once)
    users = random_users(4)
    whole = WholeWindows(users, 7, 1, 0)
    batches = list(whole.batches(40, 0))
    for start in range(len(batches) + 1):
        rest = list(whole.batches(40, start))
        assert len(rest) == len(batches) - start
        for one, other in zip(batches[start:], rest, strict=True):
            assert all(map(np.array_equal, one, other))


def test_prefixes_of_targets():
    users = ArrayUserTable(np.array([0, 3, 4, 9, 11]))  # 0, 0, 2 and 1 targets
    assert users.num_targets == 3 and (users.max_events, users.max_targets) == (5, 2)
    assert target_counts(np.arange(7)).tolist() == [0, 0, 1, 0, 1, 2, 3]
    windows = prefix_windows(users, 1, np.array([2, 0, 1]))
    assert windows.users.tolist() == [3, 2, 2]
    assert windows.starts.tolist() == [9, 4, 5] and windows.lengths.tolist() == [1, 1, 1]
