"""A synthetic data set, generated from a seed: for demonstrations without a download, not for results."""

from __future__ import annotations

import hashlib

import numpy as np

from recgrela.data.events import Events

CLUSTER_SIZE = 20  # items of a cluster; all users go through a cluster in the same order
NUM_TASTES = 3  # clusters that a user likes at the same time
P_BURST = 0.04  # a burst starts: 4 to 10 events in a random cluster
P_DRIFT = 0.015  # a taste is replaced permanently
P_SWITCH = 0.25  # move to another taste
P_SKIP = 0.25  # skip an item instead of taking the next


def generate(seed: int, n_users: int, n_items: int, mean_events: int) -> Events:
    """Events of users with long-term tastes, short bursts of other interests, and changes of taste.

    Items form clusters of 20. A user goes through a cluster item by item. After a burst or another taste, the
    user continues a cluster at the last item, so the next item depends on events long past.

    Args:
        seed: the same seed and sizes give the same events.
        n_users: number of users.
        n_items: number of items, rounded down to full clusters.
        mean_events: mean number of events per user; each user has between half and twice as many, and at
            least 5.

    Returns:
        Events in order of time, with titles such as "cluster 3 / item 17".
    """
    random = np.random.default_rng(seed)
    n_clusters = n_items // CLUSTER_SIZE
    tastes = np.argsort(random.random((n_users, n_clusters)), axis=1)[:, :NUM_TASTES]  # [n_users, tastes]
    place = random.integers(CLUSTER_SIZE, size=(n_users, n_clusters))  # the last item of each cluster
    factors = np.exp2(random.uniform(-1, 0.87, n_users))  # mean 1
    counts = np.maximum(mean_events * factors, 5).astype(np.int64)
    burst_left = np.zeros(n_users, dtype=np.int64)
    burst = np.zeros(n_users, dtype=np.int64)
    current = tastes[:, 0].copy()
    clock = random.integers(1_500_000_000, 1_510_000_000, size=n_users)
    everyone = np.arange(n_users)
    log = []
    for event in range(int(counts.max())):
        drifts = random.random(n_users) < P_DRIFT
        slots = random.integers(tastes.shape[1], size=n_users)
        new_tastes = random.integers(n_clusters, size=n_users)
        tastes[everyone[drifts], slots[drifts]] = new_tastes[drifts]
        switches = (random.random(n_users) < P_SWITCH) | drifts
        chosen = tastes[everyone, random.integers(tastes.shape[1], size=n_users)]
        current = np.where(switches, chosen, current)
        starts = (burst_left == 0) & (random.random(n_users) < P_BURST)
        burst = np.where(starts, random.integers(n_clusters, size=n_users), burst)
        burst_left = np.where(starts, random.integers(4, 11, size=n_users), np.maximum(burst_left - 1, 0))
        cluster = np.where(burst_left > 0, burst, current)
        step = 1 + (random.random(n_users) < P_SKIP)
        place[everyone, cluster] = (place[everyone, cluster] + step) % CLUSTER_SIZE
        clock = clock + random.integers(30, 86_400, size=n_users)
        alive = event < counts
        log.append(np.stack((everyone, cluster * CLUSTER_SIZE + place[everyone, cluster], clock))[:, alive])
    rows = np.concatenate(log, axis=1)  # [3, n]: user, item, time
    rows = rows[:, np.argsort(rows[2], kind="stable")]
    item_tokens = [str(item) for item in range(n_clusters * CLUSTER_SIZE)]
    return Events(
        users=rows[0].astype(np.int32),
        items=rows[1].astype(np.int32),
        times=rows[2],
        user_tokens=[str(user) for user in range(n_users)],
        item_tokens=item_tokens,
        sha256=hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest(),
        source="synthetic",
        format="synthetic",
        titles={t: f"cluster {int(t) // CLUSTER_SIZE} / item {int(t) % CLUSTER_SIZE}" for t in item_tokens},
    )
