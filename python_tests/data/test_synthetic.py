"""The built-in set: repeatable, valid, and with the long-term structure it promises."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from recgrela.data import DataConfig, load
from recgrela.data.synthetic import CLUSTER_SIZE, generate


def test_the_seed_decides_everything():
    one, same, other = (load(DataConfig(synthetic_seed=seed)) for seed in (0, 0, 1))
    assert one.sha256 == same.sha256 != other.sha256
    assert torch.equal(one.items, same.items) and torch.equal(one.offsets, same.offsets)
    assert one.description["source"] == "synthetic"


def test_the_default_set_keeps_every_user():
    data = load(DataConfig())
    assert data.n_users == 1000 and 400 < data.n_items <= 501 and not data.dropped_users
    assert 55_000 < data.n_events < 66_000
    item = int(data.items[0])
    token = int(data.item_ids[item])
    assert data.titles[item] == f"cluster {token // CLUSTER_SIZE} / item {token % CLUSTER_SIZE}"


def test_events_are_in_order_of_time_and_differ_in_number():
    events = generate(seed=3, n_users=50, n_items=100, mean_events=40)
    assert (np.diff(events.times) >= 0).all()
    counts = np.bincount(events.users)
    assert counts.min() >= 5 and counts.min() < 25 and counts.max() > 60 and 30 < counts.mean() < 50


def test_a_walk_resumes_after_an_interruption():
    """After other clusters, the next item of a cluster is one or two steps after its last one."""
    events = generate(seed=0, n_users=200, n_items=500, mean_events=60)
    resumed = total = 0
    for user in range(200):
        place: dict[int, int] = {}
        last = -1
        for item in events.items[events.users == user].tolist():
            cluster, now = divmod(item, CLUSTER_SIZE)
            if cluster in place and cluster != last:
                total += 1
                resumed += (now - place[cluster]) % CLUSTER_SIZE in (1, 2)
            place[cluster], last = now, cluster
    assert total > 1000 and resumed == total


def test_tastes_bursts_and_drifts():
    """Most events are in a user's few favorite clusters; most users also have events in several others."""
    events = generate(seed=0, n_users=200, n_items=500, mean_events=60)
    favorites, clusters, switches = [], [], []
    for user in range(200):
        mine = events.items[events.users == user] // CLUSTER_SIZE
        counts = np.sort(np.bincount(mine))[::-1]
        favorites.append(counts[:4].sum() / counts.sum())
        clusters.append(np.count_nonzero(counts))
        switches.append(np.mean([a != b for a, b in itertools.pairwise(mine)]))
    assert np.mean(favorites) > 0.6 and np.mean(clusters) > 4 and 0.1 < np.mean(switches) < 0.4


def test_small_sizes():
    data = load(DataConfig(synthetic_users=1, synthetic_items=20, synthetic_events=5, min_item_events=0))
    assert data.n_users == 1 and 5 <= data.n_events <= 10
