"""How much the order of events matters: a chain of first order on histories as they are, and shuffled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from recgrela.data import EvalBatches, Interactions
from recgrela.evaluation.trivial import FollowLast, Popularity, RepeatLast, TrivialModel, rank_trivial

MAX_USERS = 10_000  # in evaluation, which scores every item for each of them
_METRIC = "NDCG@10"
_SEED = 0


def order_scores(data: Interactions, max_len: int, max_users: int | None = MAX_USERS) -> dict[str, Any]:
    """NDCG@10 of trivial models on the test targets of leave-one-out, with the order of events and without.

    Without order, all events of a user before the test target are shuffled, those that are counted and the
    last one, whose followers rank the items. What remains of the score comes from the sets of items alone.

    Args:
        data: the interactions.
        max_len: the maximum length of a history.
        max_users: the largest number of users in evaluation; see `EvalBatches`.

    Returns:
        "users": their number; and for each model NDCG@10 with all items ranked ("seen_ranked") and without
        the seen ones ("seen_removed").

    Raises:
        DataError: no user has three events.
    """
    data = _leave_one_out(data, data.items)
    models: dict[str, tuple[Callable[[Interactions], TrivialModel], Interactions]] = {
        "popularity": (Popularity, data),
        "repeat_last": (RepeatLast, data),
        "follow_last": (FollowLast, data),
        "follow_last_shuffled": (FollowLast, shuffled(data)),
    }
    scores: dict[str, Any] = {}
    for name, (model, own) in models.items():
        batches = EvalBatches(own, "test", max_len, batch_size=1024, max_users=max_users)
        scores["users"] = batches.num_users
        ranking = rank_trivial(model(own), batches)
        scores[name] = {
            "seen_ranked": ranking.values[_METRIC],
            "seen_removed": ranking.masked[_METRIC],
        }
    return scores


def shuffled(data: Interactions) -> Interactions:
    """The interactions with each user's events before the last one in random order, from a fixed seed."""
    offsets = data.host_offsets()
    users = np.repeat(np.arange(data.n_users), np.diff(offsets))
    keys = np.random.default_rng(_SEED).random(users.size)
    keys[offsets[1:] - 1] = 1  # above all others
    return _leave_one_out(data, data.items.cpu()[torch.from_numpy(np.lexsort((keys, users)))])


def _leave_one_out(data: Interactions, items: torch.Tensor) -> Interactions:
    """Interactions with other items [n_events] in the same places, whose split is leave-one-out."""
    return Interactions(
        items=items.cpu(),
        offsets=torch.from_numpy(data.host_offsets()),
        user_ids=data.user_ids,
        item_ids=data.item_ids,
        titles=None,
        n_items=data.n_items,
        sha256=data.sha256,
        description=data.description,
    )
