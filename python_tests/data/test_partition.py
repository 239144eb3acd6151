"""Shares of batches: without overlap or gap, the same windows for every number of processes, balanced."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from recgrela.data import EvalBatches, TrainBatches
from recgrela.system.errors import ConfigError

COUNTS = [5, 1, 2, 3, 4, 30, 7, 103, 12, 6]  # events per user; 147 targets


def windows(batches) -> list[tuple[int, ...]]:
    """(user, items..., targets...) of every sequence of some batches; every event has its own item."""
    found = []
    for batch in batches:
        assert batch.offsets.tolist() == batch.cu_seqlens.tolist()
        items, target, offsets = batch.items.tolist(), batch.target.tolist(), batch.offsets.tolist()
        for row, (user, begin, end) in enumerate(
            zip(batch.users.tolist(), offsets[:-1], offsets[1:], strict=True)
        ):
            mine = target[begin:end] if batch.objective == "all" else [target[row]]
            found.append((user, *items[begin:end], *mine))
    return found


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(("objective", "pieces"), [("last", 1), ("all", 4), ("all", 6), ("all", 12)])
@pytest.mark.parametrize("batch_size", [9, 24, 1000])
def test_shares_make_up_the_batch(make_interactions, world, objective, pieces, batch_size):
    def epoch(rank: int, world: int) -> list:
        data = make_interactions(COUNTS)
        batches = TrainBatches(data, objective, 20, batch_size, 7, pieces=pieces, rank=rank, world=world)
        assert batches.num_steps == -(-147 // batch_size)
        made = list(batches.epoch(1))
        assert [batch.step for batch in made] == list(range(batches.num_steps))
        rest = TrainBatches(data, objective, 20, batch_size, 7, pieces=pieces, rank=rank, world=world)
        assert windows(rest.epoch(1, 1)) == windows(made[1:])
        return made

    alone = epoch(0, 1)
    for step, shares in enumerate(zip(*(epoch(rank, world) for rank in range(world)), strict=True)):
        targets = min(batch_size, 147 - step * batch_size)
        assert {share.global_targets for share in shares} == {targets} == {alone[step].target.numel()}
        sizes = [share.target.numel() for share in shares]
        assert sum(sizes) == targets
        assert sorted(windows(shares)) == sorted(windows([alone[step]]))
        order = windows([alone[step]])
        for share in shares:  # in the order of the batch
            places = [order.index(window) for window in windows([share])]
            assert places == sorted(places)
        if objective == "last":
            assert max(sizes) - min(sizes) <= 1
        else:
            counts = np.diff(np.arange(pieces + 1) * targets // pieces)  # items of each piece
            assert sizes == [counts[rank::world].sum() for rank in range(world)]
            assert np.ptp(counts) <= 1


def test_one_piece_changes_nothing(make_interactions):
    data = make_interactions(COUNTS)
    whole = list(TrainBatches(data, "all", 20, 24, 7).epoch(0))
    pieces = list(TrainBatches(data, "all", 20, 24, 7, pieces=4).epoch(0))
    for one, other in zip(whole, pieces, strict=True):  # four pieces are the same items with more cuts
        assert torch.equal(one.items, other.items) and torch.equal(one.target, other.target)
        size = one.num_tokens
        assert {*other.offsets.tolist()} == {*one.offsets.tolist(), *(np.arange(4) * size // 4).tolist()}


@pytest.mark.parametrize("world", [2, 3, 4])
def test_items_of_samples_are_balanced(make_interactions, world):
    """Snake dealing: shares differ by at most the longest sample, and by little where there are many."""
    counts = np.random.default_rng(0).geometric(0.02, 300).clip(5).tolist()
    ranks = [
        TrainBatches(make_interactions(counts), "last", 200, 256, 0, rank=rank, world=world).epoch(0)
        for rank in range(world)
    ]
    for shares in zip(*ranks, strict=True):
        tokens = [share.num_tokens for share in shares]
        assert max(tokens) - min(tokens) <= 200
        assert max(tokens) <= 1.05 * np.mean(tokens) or shares[0].global_targets < 256


@pytest.mark.parametrize("objective", ["last", "all"])
def test_a_share_may_be_empty(make_interactions, objective):
    batches = TrainBatches(make_interactions([4, 5]), objective, 10, 8, 0, pieces=4, rank=3, world=4)
    shares = [
        next(TrainBatches(make_interactions([4, 5]), objective, 10, 8, 0, pieces=4, rank=r, world=4).epoch(0))
        for r in range(4)
    ]
    assert batches.num_targets == 3 and batches.num_steps == 1
    assert sorted(share.target.numel() for share in shares) == [0, 1, 1, 1]
    empty = next(share for share in shares if share.size == 0)
    assert empty.max_seqlen == empty.num_tokens == 0 and empty.cu_seqlens.tolist() == [0]
    assert empty.global_targets == 3
    assert list(empty.parts(100, lambda lengths: int(lengths.sum()))) == []


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_evaluation_takes_turns(make_interactions, world):
    data = make_interactions(COUNTS)
    whole = EvalBatches(data, "test", 20, 3)
    assert len(whole) == whole.num_batches == 3
    shares = [EvalBatches(data, "test", 20, 3, rank=rank, world=world) for rank in range(world)]
    found = sorted(itertools.chain(*shares), key=lambda batch: batch.step)
    assert [batch.step for batch in found] == [0, 1, 2]
    assert windows(found) == windows(whole)
    assert sum(map(len, shares)) == 3
    for rank, share in enumerate(shares):
        assert share.num_batches == 3 and np.array_equal(share.users, whole.users)
        for batch in share:
            assert batch.step % world == rank
            assert batch.users.tolist() == whole.users[batch.step * 3 :][: batch.size].tolist()
            assert all(map(torch.equal, share.seen(batch), whole.seen(batch)))


def test_parts_keep_the_number_of_targets_on_all_processes(make_interactions):
    batches = TrainBatches(make_interactions(COUNTS), "all", 20, 60, 0, pieces=2, rank=1, world=2)
    batch = next(batches.epoch(0))
    parts = list(batch.parts(20, lambda lengths: int(lengths.sum())))
    assert len(parts) > 1 and {part.global_targets for part in parts} == {60}


def test_wrong_shares(make_interactions):
    data = make_interactions(COUNTS)
    for share, expected in (
        ({"pieces": 2, "world": 3}, "train.pieces: 2 is below the number of processes, 3; set it to"),
        ({"pieces": 0}, "train.pieces: 0 is below 1"),
        ({"world": 0}, "world: 0 is below 1"),
        ({"pieces": 2, "rank": 2, "world": 2}, "rank: 2 is not in 0 .. 1"),
    ):
        with pytest.raises(ConfigError) as caught:
            TrainBatches(data, "all", 10, 4, 0, **share)
        assert str(caught.value).startswith(expected)
    TrainBatches(data, "last", 10, 4, 0, pieces=1, rank=2, world=3)  # objective "last" has no pieces
    with pytest.raises(ConfigError, match=r"rank: -1 is not in 0 \.\. 1"):
        EvalBatches(data, "test", 10, 4, rank=-1, world=2)


def test_some_users_are_evaluated_in_every_run(make_interactions):
    data = make_interactions([1, 5, 2, 3, 4] * 40)
    whole = EvalBatches(data, "test", 20, 16)
    assert whole.num_users == 120
    some = EvalBatches(data, "test", 20, 16, max_users=50)
    assert some.num_users == 50 and np.all(np.diff(some.users) > 0) and set(some.users) < set(whole.users)
    assert np.array_equal(some.users, EvalBatches(data, "valid", 7, 3, max_users=50).users)
    assert not np.array_equal(some.users, whole.users[:50])
    more = EvalBatches(data, "test", 20, 16, max_users=80)
    assert set(some.users) < set(more.users)  # a larger number keeps the users
    assert np.array_equal(EvalBatches(data, "test", 20, 16, max_users=1000).users, whole.users)
    assert [batch.size for batch in some] == [16, 16, 16, 2]
    by_user = dict(zip(whole.users.tolist(), torch.cat([b.target for b in whole]).tolist(), strict=True))
    assert torch.cat([b.target for b in some]).tolist() == [by_user[user] for user in some.users.tolist()]
    with pytest.raises(ConfigError, match="max_users: 0 is below 1"):
        EvalBatches(data, "test", 20, 16, max_users=0)
