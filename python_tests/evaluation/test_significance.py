from __future__ import annotations

import itertools

import numpy as np
import pytest

from recgrela.evaluation.significance import bootstrap_interval, by_user, holm, sign_flip_test


def test_the_interval_of_hits_matches_the_binomial() -> None:
    """600 of 1,000 users hit: the mean's standard error is sqrt(0.6 * 0.4 / 1000) = 0.01549."""
    scores = np.repeat([1.0, 0.0], [600, 400])[:, None]
    low, high = bootstrap_interval(scores)
    assert low[0] == pytest.approx(0.6 - 1.96 * 0.01549, abs=1.5e-3)
    assert high[0] == pytest.approx(0.6 + 1.96 * 0.01549, abs=1.5e-3)


def test_intervals_hold_the_mean_and_repeat() -> None:
    scores = np.random.default_rng(1).random((5000, 3)) ** 4  # more users than a block of draws holds
    low, high = bootstrap_interval(scores, resamples=2000)
    assert ((low < scores.mean(0)) & (scores.mean(0) < high)).all()
    again = bootstrap_interval(scores, resamples=2000)
    assert (low == again[0]).all() and (high == again[1]).all()
    narrow = bootstrap_interval(scores, level=0.5, resamples=2000)
    assert (narrow[0] > low).all() and (narrow[1] < high).all()


def test_equal_users_have_an_interval_of_zero_width() -> None:
    low, high = bootstrap_interval(np.full((10, 1), 0.25))
    assert (low[0], high[0]) == (0.25, 0.25)


def test_equal_scores_do_not_differ_and_better_ones_do() -> None:
    users = 400
    rng = np.random.default_rng(2)
    noise = rng.normal(size=users)
    columns = np.stack([np.zeros(users), 0.5 + noise, -0.5 + noise, noise - noise.mean()], 1)
    same, better, worse, level = sign_flip_test(columns)
    assert same == 1.0
    assert better == worse == pytest.approx(1 / 10_001)
    assert level == 1.0
    assert (sign_flip_test(columns) == sign_flip_test(columns)).all()


def test_p_is_the_share_of_all_signs() -> None:
    """Six users have 64 equally likely combinations of signs."""
    differences = np.array([0.3, 0.1, 0.2, -0.05, 0.4, 0.15])
    sums = [abs(differences @ signs) for signs in itertools.product([-1, 1], repeat=6)]
    exact = np.mean(np.array(sums) >= differences.sum() - 1e-12)
    (p,) = sign_flip_test(differences[:, None], resamples=40_000)
    assert exact == 4 / 64
    assert p == pytest.approx(exact, abs=5e-3)


def test_holm_by_hand() -> None:
    # Sorted: .01 .02 .03 .04, times 4 3 2 1; each at least the previous one.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_targets_of_a_user_stay_together() -> None:
    """Copies of a user's target say nothing new: the interval is that of the users, not a narrower one."""
    rng = np.random.default_rng(1)
    scores = rng.random((50, 3))
    copied, users = scores.repeat(8, axis=0), np.arange(50).repeat(8)
    for one, many in zip(bootstrap_interval(scores), bootstrap_interval(copied, users), strict=True):
        assert many == pytest.approx(one, abs=1e-12)
    low, high = bootstrap_interval(copied)
    alone = bootstrap_interval(scores)
    assert (high - low < 0.5 * (alone[1] - alone[0])).all()
    differences = scores - scores.mean(0) + 0.02
    assert sign_flip_test(differences.repeat(8, axis=0), users) == pytest.approx(sign_flip_test(differences))
    assert (sign_flip_test(differences.repeat(8, axis=0)) < sign_flip_test(differences)).all()


def test_means_over_targets_weigh_users_by_their_targets() -> None:
    scores, users = np.array([[1.0], [1.0], [1.0], [0.0]]), np.array([7, 7, 7, 3])
    low, high = bootstrap_interval(scores, users)
    assert (low, high) == (0, 1)  # a resample may have one of the users only
    sums, targets = by_user(scores, users)
    assert sums.tolist() == [[0], [3]] and targets.tolist() == [1, 3]
