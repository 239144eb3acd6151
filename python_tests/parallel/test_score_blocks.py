"""Ranks and best items of blocks against those of whole score matrices."""

from __future__ import annotations

import pytest
import torch

from python_tests.support.ranking import assert_best, target_ranks
from recgrela.parallel.score_blocks import COLUMNS, ScoreBlocks, block_rows, pairs_removed, rank_targets


@pytest.mark.parametrize("max_scores", [1, 9 * COLUMNS, 1 << 20])
@pytest.mark.parametrize("has_bias", [False, True])
def test_blocks_of_any_size_give_the_same_ranks(max_scores: int, has_bias: bool) -> None:
    batch, rows, width = 9, 2 * COLUMNS + 7, 4
    states, table = torch.randint(-2, 3, (batch, width)).float(), torch.randint(-2, 3, (rows, width)).float()
    bias = torch.randint(-1, 2, (rows,)).float() if has_bias else None
    scores = states @ table.T + (0 if bias is None else bias)  # whole numbers, with many ties
    target = torch.cat([torch.tensor([1, rows - 1, COLUMNS, COLUMNS - 1]), torch.randint(1, rows, (5,))])
    removed = torch.rand(batch, rows) < 0.4
    pairs = removed.nonzero().repeat(2, 1)
    size = block_rows(batch, rows, max_scores)
    blocks = ScoreBlocks.of_table([states[:4], states[4:]], table, bias, size)
    found = rank_targets(blocks, target, pairs_removed(*pairs[torch.randperm(len(pairs))].T, batch), k=12)
    for variant, mask in enumerate((None, removed)):
        rank, ties = target_ranks(scores, target, mask)
        assert torch.equal(found.rank[variant], rank) and torch.equal(found.ties[variant], ties)
        assert_best(scores, mask, found.best[variant])
    assert not found.has_nan.any()


def test_scores_in_memory_are_bounded() -> None:
    assert block_rows(256, 3000, 1 << 20) == 3000
    for batch, rows in ((256, 1_000_000), (4, 1_000_000), (100_000, 5_000)):
        size = block_rows(batch, rows, 1 << 20)
        assert size % COLUMNS == 0 and (batch * size <= 1 << 20 or size == COLUMNS)


def test_nan_scores_are_found_in_every_block_except_in_padding() -> None:
    table = torch.ones(3 * COLUMNS, 2)
    table[0] = torch.nan
    nothing = pairs_removed(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 2)
    states, target = torch.eye(2) + 1, torch.tensor([1, 2])
    found = rank_targets(ScoreBlocks.of_table([states], table, None, COLUMNS), target, nothing)
    assert not found.has_nan.any()
    table[-1] = torch.nan
    found = rank_targets(ScoreBlocks.of_table([states], table, None, COLUMNS), target, nothing, k=3)
    assert found.has_nan.all() and (found.best > 0).all() and (found.best < len(table) - 1).all()


def test_fewer_items_than_asked_for() -> None:
    scores = ScoreBlocks.of_table([torch.ones(1, 2)], torch.ones(4, 2), None, 4)
    seen = pairs_removed(torch.tensor([0, 0]), torch.tensor([1, 3]), 1)
    every, left = scores.best(5, seen)[1]
    assert every.sort().values.tolist() == [[-1, -1, 1, 2, 3]]
    assert left.tolist() == [[2, -1, -1, -1, -1]]
