from __future__ import annotations

import numpy as np
import pytest
import torch

from recgrela.data import Batch, DataConfig, EvalBatches, TrainBatches, load
from recgrela.data.filling import MIN_MULTIPLE, Filling
from recgrela.settings.train import Objective


def packed(lengths: np.ndarray) -> int:
    return int(lengths.sum())


def dense(lengths: np.ndarray) -> int:
    return len(lengths) * int(lengths.max())


def batch_of(lengths: list[int], objective: Objective) -> Batch:
    offsets = np.cumsum([0, *lengths])
    items = torch.arange(1, int(offsets[-1]) + 1)
    target = items + 1 if objective == "all" else torch.arange(len(lengths)) + 1
    users = torch.arange(len(lengths))
    return Batch(objective, items, torch.from_numpy(offsets), max(lengths), target, users, offsets)


@pytest.mark.parametrize("max_seqlen", [2, 3, 20, 200])
def test_prefixes_are_filled_by_sequences_without_targets(max_seqlen: int) -> None:
    filling, sizes = Filling("last", max_seqlen, packed), set()
    random = np.random.default_rng(max_seqlen)
    for _ in range(200):
        lengths = random.integers(1, max_seqlen + 1, 100).tolist()
        batch = batch_of(lengths, "last")
        items, cu_seqlens, target = filling(batch)
        total = batch.num_tokens
        assert torch.equal(items[:total], batch.items) and not items[total:].any()
        assert cu_seqlens[:101].tolist() == batch.offsets.tolist() and cu_seqlens[-1] == len(items)
        fillers = cu_seqlens[100:].diff()
        assert fillers.min() >= 1 and fillers.max() <= max_seqlen and fillers.max() - fillers.min() <= 1
        assert target is batch.target
        assert len(items) - total <= 2 * max(MIN_MULTIPLE, total / 16)
        sizes.add((len(items), len(cu_seqlens)))
    assert len(sizes) <= 16


def test_sequences_of_one_item_need_no_filling() -> None:
    batch = batch_of([1] * 5, "last")
    items, cu_seqlens, _ = Filling("last", 1, packed)(batch)
    assert torch.equal(items, batch.items) and cu_seqlens.tolist() == list(range(6))


@pytest.mark.parametrize(("slots", "expected"), [(packed, 128), (dense, 104)])
def test_windows_are_filled_by_empty_sequences(slots: object, expected: int) -> None:
    """In a dense form they take slots, so fewer are added."""
    batch = batch_of([3] * 101, "all")
    items, cu_seqlens, target = Filling("all", 3, slots)(batch)  # type: ignore[arg-type]
    assert items is batch.items and target is batch.target
    assert cu_seqlens.tolist() == [*range(0, 304, 3), *[303] * (expected - 101)]


def test_padded_sequences_have_one_size() -> None:
    batch = batch_of([2, 3, 1], "last")
    filling = Filling("last", 3, dense, padded_length=4)
    items, cu_seqlens, target, lengths = filling(batch)
    assert items.view(3, 4).tolist() == [[1, 2, 0, 0], [3, 4, 5, 0], [6, 0, 0, 0]]
    assert cu_seqlens.tolist() == [0, 4, 8, 12] and lengths.tolist() == [2, 3, 1]
    assert filling.max_seqlen == 4 and target is batch.target


@pytest.mark.parametrize("max_len", [5, 1000])
def test_longest_sequences(max_len: int) -> None:
    data = load(DataConfig(synthetic_users=40, synthetic_items=20, synthetic_events=10))
    for objective in ("last", "all"):
        batches = TrainBatches(data, objective, max_len, 50, 0)
        assert batches.max_seqlen >= max(batch.max_seqlen for batch in batches.epoch(0))
    assert batches.max_seqlen == max_len or max_len == 1000
    last = TrainBatches(data, "last", max_len, 1 << 20, 0)
    assert last.max_seqlen == max(batch.max_seqlen for batch in last.epoch(0))
    valid, test = (EvalBatches(data, split, max_len, 1 << 20) for split in ("valid", "test"))
    assert valid.max_seqlen == test.max_seqlen == next(iter(test)).max_seqlen
