"""Splits, windows and batches against naive implementations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recgrela.data import EvalBatches, TrainBatches
from recgrela.system.errors import ConfigError, DataError

COUNTS = [5, 1, 2, 3, 4, 30, 7, 103, 12, 6]  # events per user


def sequences(batch) -> list[tuple[int, list[int]]]:
    """(user row, items) of each sequence, after checking the batch's shape."""
    cu = batch.cu_seqlens.tolist()
    assert (
        batch.items.dtype == batch.cu_seqlens.dtype == batch.target.dtype == batch.users.dtype == torch.int64
    )
    assert cu[0] == 0 and cu[-1] == batch.items.numel() == batch.num_tokens
    assert len(cu) - 1 == batch.users.numel() == batch.size
    lengths = [end - start for start, end in itertools.pairwise(cu)]
    assert min(lengths) >= 1 and max(lengths) == batch.max_seqlen
    items = batch.items.tolist()
    return [
        (user, items[start:end])
        for user, (start, end) in zip(batch.users.tolist(), itertools.pairwise(cu), strict=True)
    ]


def naive_split(data) -> list[tuple[list[int], list[int]]]:
    """(training events, all events) of each user."""
    whole = [data.items[a:b].tolist() for a, b in itertools.pairwise(data.offsets.tolist())]
    return [(events[:-2] if len(events) >= 3 else events, events) for events in whole]


@pytest.mark.parametrize("max_len", [1, 4, 50, 200])
@pytest.mark.parametrize("batch_size", [1, 8, 1000])
def test_last_gives_every_prefix_once(make_interactions, max_len, batch_size):
    data = make_interactions(COUNTS)
    expected = [
        (user, tuple(train[max(0, end - max_len) : end]), train[end])
        for user, (train, _) in enumerate(naive_split(data))
        for end in range(1, len(train))
    ]
    batches = TrainBatches(data, "last", max_len, batch_size, seed=3)
    assert batches.num_targets == len(expected)
    made = list(batches.epoch(0))
    assert len(made) == batches.num_steps == -(-len(expected) // batch_size)
    assert [batch.step for batch in made] == list(range(len(made)))
    found = [
        (user, tuple(items), target)
        for batch in made
        for (user, items), target in zip(sequences(batch), batch.target.tolist(), strict=True)
    ]
    assert found != expected, "not shuffled"
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("max_len", [1, 2, 5, 28, 50, 101, 200])
def test_all_gives_every_target_once_per_epoch(make_interactions, max_len):
    data = make_interactions(COUNTS)  # every event has a different item, so items identify positions
    split = naive_split(data)
    expected = sorted(item for train, _ in split for item in train[1:])
    batches = TrainBatches(data, "all", max_len, 1000, seed=1)
    assert batches.num_targets == len(expected)
    plans = set()
    for epoch in range(6):
        targets, windows = [], []
        made = list(batches.epoch(epoch))
        assert len(made) == batches.num_steps
        for batch in made:
            assert batch.target.shape == batch.items.shape
            at = 0
            for user, items in sequences(batch):
                target = batch.target[at : at + len(items)].tolist()
                at += len(items)
                train = split[user][0]
                start = train.index(items[0])
                assert items == train[start : start + len(items)] and len(items) <= max_len
                assert target == train[start + 1 : start + 1 + len(items)]
                targets += target
                windows.append((user, start, len(items)))
        assert sorted(targets) == expected
        for user, (train, _) in enumerate(split):
            mine = sorted(window for window in windows if window[0] == user)
            if len(train) - 1 <= max_len:
                assert len(mine) == (len(train) > 1)  # no needless cut
            else:
                assert all(length == max_len for _, _, length in mine[1:-1])
        plans.add(tuple(sorted(windows)))
    cut = any(len(train) - 1 > max_len for train, _ in split)
    assert len(plans) > 1 if cut and max_len > 1 else len(plans) == 1


@pytest.mark.parametrize("batch_size", [1, 7, 21, 50, 146, 147, 148])
def test_batches_of_objective_all_have_equal_sizes(make_interactions, batch_size):
    """A window is cut at the end of a full batch; the rest of it begins the next batch."""
    whole = next(TrainBatches(make_interactions(COUNTS), "all", 20, 1000, seed=1).epoch(3))
    batches = TrainBatches(make_interactions(COUNTS), "all", 20, batch_size, seed=1)
    made = list(batches.epoch(3))
    assert len(made) == batches.num_steps == -(-147 // batch_size)
    assert [batch.num_tokens for batch in made[:-1]] == [batch_size] * (len(made) - 1)
    for name in ("items", "target"):  # the cuts change nothing else
        assert torch.equal(torch.cat([getattr(batch, name) for batch in made]), getattr(whole, name))
    at = itertools.accumulate((batch.num_tokens for batch in made), initial=0)
    ends = {begin + end for begin, batch in zip(at, made, strict=False) for end in batch.offsets.tolist()}
    assert ends == {*whole.offsets.tolist(), *range(0, 147, batch_size)}
    assert all(len(sequences(batch)) == batch.size for batch in made)


def test_cuts_are_uniform(make_interactions):
    """The first window has each length of 1 .. max_len about equally often."""
    batch = next(TrainBatches(make_interactions([40] * 2000), "all", 10, 10**6, seed=0).epoch(0))
    first = batch.cu_seqlens.diff()[(batch.items[batch.cu_seqlens[:-1]] - 1) % 40 == 0]
    assert first.numel() == 2000
    counts = torch.bincount(first, minlength=11)
    assert counts[0] == 0 and counts[1:].min() > 140 and counts[1:].max() < 260  # 200 each, standard error 13


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("max_len", [1, 4, 200])
def test_evaluation_matches_naive(make_interactions, split, max_len):
    data = make_interactions(COUNTS, n_items=25)  # items repeat
    back = {"valid": 2, "test": 1}[split]
    expected = [
        (user, events[:-back][-max_len:], events[-back], events[:-back])
        for user, (_, events) in enumerate(naive_split(data))
        if len(events) >= 3
    ]
    batches = EvalBatches(data, split, max_len, batch_size=3)
    assert batches.num_users == len(expected) and len(batches) == 3
    found = []
    for batch in batches:
        rows, items = batches.seen(batch)
        assert rows.dtype == items.dtype == torch.int64
        for row, ((user, window), target) in enumerate(
            zip(sequences(batch), batch.target.tolist(), strict=True)
        ):
            found.append((user, window, target, items[rows == row].tolist()))
    assert found == expected


@pytest.mark.parametrize("objective", ["last", "all"])
def test_resume_equals_the_rest_of_the_epoch(make_interactions, objective):
    batches = TrainBatches(make_interactions(COUNTS), objective, 10, 4, seed=5)
    whole = list(batches.epoch(2))
    for start in (0, 1, len(whole) - 1, len(whole)):
        rest = list(TrainBatches(make_interactions(COUNTS), objective, 10, 4, seed=5).epoch(2, start))
        assert len(rest) == len(whole) - start
        for one, other in zip(rest, whole[start:], strict=True):
            assert one.step == other.step and one.max_seqlen == other.max_seqlen
            for name in ("items", "cu_seqlens", "target", "users"):
                assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("objective", ["last", "all"])
def test_seed_and_epoch_decide_the_order(make_interactions, objective):
    def order(seed: int, epoch: int) -> list[int]:
        torch.manual_seed(epoch)  # must have no effect
        batches = TrainBatches(make_interactions(COUNTS), objective, 10, 4, seed)
        return torch.cat([batch.target for batch in batches.epoch(epoch)]).tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


class WaitCounter(TorchDispatchMode):
    """Records operations whose output size or value would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        self.seen.append(name)
        masks = [
            index
            for arg in args
            if isinstance(arg, (list, tuple))
            for index in arg
            if isinstance(index, torch.Tensor) and index.dtype == torch.bool
        ]
        unsized = name == "repeat_interleave" and kwargs.get("output_size") is None
        if masks or unsized or name in ("nonzero", "masked_select", "unique", "_unique2", "bincount"):
            self.waits.append(name)
        return func(*args, **kwargs)


@pytest.mark.parametrize("objective", ["last", "all"])
def test_no_operation_waits_for_the_device(make_interactions, objective):
    data = make_interactions(COUNTS)
    train, evaluation = TrainBatches(data, objective, 10, 4, seed=5), EvalBatches(data, "test", 10, 4)
    with WaitCounter() as counter:
        for _ in train.epoch(0):
            pass
        for batch in evaluation:
            evaluation.seen(batch)
    assert counter.waits == []
    assert "repeat_interleave" in counter.seen and "index" in counter.seen
    with WaitCounter() as counter:
        torch.arange(3)[torch.tensor([True, False, True])]
    assert counter.waits == ["index"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="skipped: no CUDA device")
@pytest.mark.parametrize("objective", ["last", "all"])
def test_cuda_batches_equal_cpu_batches_without_a_wait(make_interactions, objective):
    data = make_interactions(COUNTS).to("cuda")
    train, evaluation = (
        TrainBatches(data, objective, 10, 4, 5, "cuda"),
        EvalBatches(data, "test", 10, 4, "cuda"),
    )
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = list(train.epoch(1))
        seen = [evaluation.seen(batch) for batch in evaluation]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(made, TrainBatches(data.to("cpu"), objective, 10, 4, 5).epoch(1), strict=True):
        for name in ("items", "cu_seqlens", "target", "users"):
            assert torch.equal(getattr(one, name).cpu(), getattr(other, name))
    on_cpu = EvalBatches(data.to("cpu"), "test", 10, 4)
    for batch, (rows, items) in zip(on_cpu, seen, strict=True):
        assert all(map(torch.equal, on_cpu.seen(batch), (rows.cpu(), items.cpu())))


def test_nothing_to_predict_or_evaluate(make_interactions):
    with pytest.raises(DataError, match="made by the test: no user has two training events"):
        TrainBatches(make_interactions([3, 1, 1]), "last", 10, 4, 0)
    with pytest.raises(DataError, match="made by the test: no user has three events"):
        EvalBatches(make_interactions([2, 1, 2]), "valid", 10, 4)


def test_wrong_arguments(make_interactions):
    data = make_interactions(COUNTS)
    for settings, expected in (
        (("first", 10, 4, 0), "objective: 'first' is not one of last, all"),
        (("last", 0, 4, 0), "max_len: 0 is below 1"),
        (("last", 10, 0, 0), "batch_size: 0 is below 1"),
        (("last", 10, 4, -1), "seed: -1 is below 0"),
    ):
        with pytest.raises(ConfigError) as caught:
            TrainBatches(data, *settings)
        assert str(caught.value) == expected
    with pytest.raises(ConfigError, match="split: 'train' is not one of valid, test"):
        EvalBatches(data, "train", 10, 4)


def packed_slots(lengths: np.ndarray) -> int:
    return int(lengths.sum())


def dense_slots(lengths: np.ndarray) -> int:
    return len(lengths) * int(lengths.max())


def padded_slots(lengths: np.ndarray) -> int:
    return len(lengths) * 20


@pytest.mark.parametrize("objective", ["last", "all"])
@pytest.mark.parametrize("slots", [packed_slots, dense_slots, padded_slots])
@pytest.mark.parametrize("max_slots", [1, 40, 10**6])
def test_parts_make_up_the_batch(make_interactions, objective, max_slots, slots):
    batches = TrainBatches(make_interactions(COUNTS), objective, 20, 30, seed=3)
    for batch in batches.epoch(0):
        parts = list(batch.parts(max_slots, slots))
        assert [s for part in parts for s in sequences(part)] == sequences(batch)
        assert torch.equal(torch.cat([part.target for part in parts]), batch.target)
        for part in parts:
            assert part.objective == objective
            assert part.cu_seqlens.tolist() == part.offsets.tolist()
            assert slots(np.diff(part.offsets)) <= max_slots or part.size == 1
        # No part has room for one more sequence.
        for part, other in itertools.pairwise(parts):
            assert slots(np.append(np.diff(part.offsets), np.diff(other.offsets)[0])) > max_slots
        if max_slots == 10**6:
            assert parts[0] is batch


def test_a_part_of_single_items_keeps_one_target_per_sequence(make_interactions):
    """Objective "last" and "all" differ only in the target's meaning when every sequence has one item."""
    for objective in ("last", "all"):
        batch = next(TrainBatches(make_interactions([4] * 8), objective, 20, 30, seed=3).epoch(0))
        assert batch.items.shape == batch.target.shape == batch.users.shape
        parts = list(batch.parts(3, packed_slots))
        assert [part.objective for part in parts] == [objective] * 3
        assert torch.equal(torch.cat([part.target for part in parts]), batch.target)
