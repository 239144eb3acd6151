from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from python_tests.support.ranking import target_ranks
from recgrela.evaluation.metrics import (
    MISSED,
    Ranking,
    RankingCounts,
    metrics_of,
    seen_targets,
    summarize,
)
from recgrela.parallel.score_blocks import pairs_removed, rank_targets, whole_scores
from recgrela.settings.train import CUTOFFS, metric_names
from recgrela.system.errors import RunError

CPU = torch.device("cpu")
Seen = list[list[int]]


def rank(scores: Tensor, target: Tensor, seen: Seen, cutoffs: Sequence[int] = CUTOFFS) -> Ranking:
    """The ranking of some rows of scores, in batches of which the last is smaller."""
    counts, parts, batch = RankingCounts(CPU, cutoffs), [], 20
    for start in range(0, len(target), batch):
        own = seen[start : start + batch]
        rows = torch.tensor([row for row, items in enumerate(own) for _ in items], dtype=torch.int64)
        items = torch.tensor([item for items in own for item in items], dtype=torch.int64)
        targets = target[start : start + batch]
        removed = pairs_removed(rows, items, len(targets))
        found = rank_targets(whole_scores(scores[start : start + batch]), targets, removed)
        parts.append(counts.add(found, seen_targets((rows, items), targets)))
    users = np.arange(len(target)) // 2  # two targets each
    return summarize(torch.cat(parts, 1), target.int(), users, counts.read(), cutoffs)


def naive_ranks(scores: list[float], target: int, removed: set[int]) -> tuple[int, int]:
    """The rank with ties against the model, and with ties in its favor."""
    others = [i for i in range(1, len(scores)) if i != target and i not in removed]
    higher = sum(scores[i] > scores[target] for i in others)
    equal = sum(scores[i] == scores[target] for i in others)
    return 1 + higher + equal, 1 + higher


def naive_metrics(ranks: list[int], cutoffs: Sequence[int]) -> dict[str, float]:
    values = {}
    for k in cutoffs:
        hits = [r if r <= k else None for r in ranks]
        values[f"HR@{k}"] = sum(r is not None for r in hits) / len(ranks)
        values[f"NDCG@{k}"] = sum(1 / math.log2(r + 1) for r in hits if r) / len(ranks)
        values[f"MRR@{k}"] = sum(1 / r for r in hits if r) / len(ranks)
    return values


@pytest.mark.parametrize("cutoffs", [(5, 10), (1, 3, 20)])
def test_equals_a_naive_ranking_with_ties_and_seen_items(cutoffs: tuple[int, ...]) -> None:
    targets, n_items = 64, 30
    scores = torch.randint(0, 12, (targets, n_items)).float()  # many ties
    target = torch.randint(1, n_items, (targets,))
    seen = [[int(i) for i in torch.randint(1, n_items, (7,))] for _ in range(targets)]  # with repeats
    for row in range(0, targets, 3):
        seen[row].append(int(target[row]))
    new = [int(item) not in items for item, items in zip(target, seen, strict=True)]
    result = rank(scores, target, seen, cutoffs)

    for removes, values, new_values, ties, ranks in (
        (False, result.values, result.new_values, result.ties, result.ranks[0]),
        (True, result.masked, result.new_masked, result.masked_ties, result.ranks[1]),
    ):
        pairs = [
            (MISSED, MISSED)
            if removes and not new[u]
            else naive_ranks(scores[u].tolist(), int(target[u]), set(seen[u]) if removes else set())
            for u in range(targets)
        ]
        worst = [pair[0] for pair in pairs]
        assert values == pytest.approx(naive_metrics(worst, cutoffs), abs=1e-12)
        only_new = [r for r, is_new in zip(worst, new, strict=True) if is_new]
        assert new_values == pytest.approx(naive_metrics(only_new, cutoffs), abs=1e-12)
        assert tuple(values) == metric_names(cutoffs)
        assert metrics_of(ranks, cutoffs).mean(0).tolist() == pytest.approx(list(values.values()))
        assert ranks.tolist() == worst
        assert ties == sum(best <= max(cutoffs) and best != rank for rank, best in pairs) > 0
    assert (result.users, result.targets, result.new_targets) == (32, targets, sum(new))
    assert result.items.tolist() == target.tolist()


def test_a_seen_target_is_a_miss_when_seen_items_are_removed() -> None:
    """A model that repeats the last item has no hit: what it recommends is removed."""
    scores = torch.tensor([[0.0, 1.0, 2.0, 9.0], [0.0, 9.0, 2.0, 1.0]])
    result = rank(scores, torch.tensor([3, 1]), [[1, 3], [2]])
    assert result.values["MRR@5"] == 1
    assert result.masked["MRR@5"] == 0.5 and result.new_targets == 1
    assert result.new_values is not None and result.new_values["MRR@5"] == 1
    assert result.ranks.tolist() == [[1, 1], [MISSED, 1]]
    none_new = rank(scores, torch.tensor([3, 1]), [[3], [1]])
    assert none_new.new_targets == 0 and none_new.new_values is None and none_new.new_masked is None
    assert set(none_new.masked.values()) == {0.0}


def test_hand_made_ranks() -> None:
    scores = torch.tensor([[9.0, 1.0, 3.0, 2.0], [9.0, 5.0, 5.0, 7.0], [9.0, 4.0, 4.0, 4.0]])
    target = torch.tensor([2, 1, 3])
    assert [x.tolist() for x in target_ranks(scores, target)] == [[1, 3, 3], [0, 1, 2]]
    # The 9 of the padding column is ignored.
    assert rank(scores, target, [[], [], []]).ranks[0].tolist() == [1, 3, 3]


def test_infinite_scores_rank_like_others() -> None:
    scores = torch.tensor([[0.0, math.inf, -math.inf, 1.0]]).expand(3, 4)
    assert rank(scores, torch.tensor([1, 2, 3]), [[], [], []]).ranks[0].tolist() == [1, 3, 2]


def test_nan_is_an_error_except_in_the_padding_column() -> None:
    scores, target = torch.zeros(2, 5), torch.tensor([1, 2])
    scores[:, 0] = torch.nan
    assert rank(scores, target, [[], []]).values["HR@10"] == 1
    scores[1, 4] = torch.nan
    with pytest.raises(RunError, match="NaN scores for 1 of 2 targets"):
        rank(scores, target, [[], []])


def test_counts_begin_again() -> None:
    counts, nothing = RankingCounts(CPU), torch.zeros(0, dtype=torch.int64)
    target, is_seen = torch.tensor([1]), torch.zeros(1, dtype=torch.bool)
    for score in (torch.nan, 0.0):
        scores = whole_scores(torch.tensor([[0.0, score, score]]))
        counts.add(rank_targets(scores, target, pairs_removed(nothing, nothing, 1)), is_seen)
    assert counts.read().tolist() == [1, 1, 1]
    counts.reset()
    assert counts.read().tolist() == [0, 0, 0]


def test_no_targets_is_an_error() -> None:
    nothing = torch.zeros(0, dtype=torch.int32)
    with pytest.raises(RunError, match="no targets"):
        summarize(torch.zeros(2, 0, dtype=torch.int32), nothing, np.zeros(0), RankingCounts(CPU).read())
