from __future__ import annotations

import math

import pytest
import torch

from recgrela.evaluation.metrics import NAMES, RankingCounts, metrics_of, summarize, target_ranks
from recgrela.system.errors import RunError

CPU = torch.device("cpu")


def naive_ranks(scores: list[float], target: int, removed: set[int]) -> tuple[int, int]:
    """The rank with ties against the model, and with ties in its favor."""
    others = [i for i in range(1, len(scores)) if i != target and i not in removed]
    higher = sum(scores[i] > scores[target] for i in others)
    equal = sum(scores[i] == scores[target] for i in others)
    return 1 + higher + equal, 1 + higher


def naive_metrics(ranks: list[int]) -> dict[str, float]:
    values = {}
    for k in (5, 10):
        hits = [r if r <= k else None for r in ranks]
        values[f"HR@{k}"] = sum(r is not None for r in hits) / len(ranks)
        values[f"NDCG@{k}"] = sum(1 / math.log2(r + 1) for r in hits if r) / len(ranks)
        values[f"MRR@{k}"] = sum(1 / r for r in hits if r) / len(ranks)
    return values


def test_equals_a_naive_ranking_with_ties_and_seen_items() -> None:
    users, n_items = 64, 30
    scores = torch.randint(0, 12, (users, n_items)).float()  # many ties
    target = torch.randint(1, n_items, (users,))
    seen = [[int(i) for i in torch.randint(1, n_items, (7,))] for _ in range(users)]  # with repeats
    for user in range(0, users, 3):
        seen[user].append(int(target[user]))  # seen before, but never removed
    counts, parts = RankingCounts(CPU), []
    for start in range(0, users, 20):  # a last, smaller batch too
        rows = range(start, min(start + 20, users))
        pairs = [(row - start, item) for row in rows for item in seen[row]]
        removed_items = torch.zeros(len(rows), n_items, dtype=torch.bool)
        removed_items[tuple(torch.tensor(pairs).T)] = True
        parts.append(counts.add(scores[start : start + 20], target[start : start + 20], removed_items))
    result = summarize(torch.cat(parts, 1), counts.read())

    for removed, values, ties, ranks in (
        ([set() for _ in seen], result.values, result.ties, result.ranks[0]),
        ([set(items) for items in seen], result.masked, result.masked_ties, result.ranks[1]),
    ):
        pairs = [naive_ranks(scores[u].tolist(), int(target[u]), removed[u]) for u in range(users)]
        expected = naive_metrics([worst for worst, _ in pairs])
        assert set(values) == set(NAMES) == set(expected)
        for name in NAMES:
            assert values[name] == pytest.approx(expected[name], abs=1e-12), name
        assert metrics_of(ranks).mean(0).tolist() == pytest.approx([values[name] for name in NAMES])
        assert ranks.tolist() == [worst for worst, _ in pairs]
        assert ties == sum(best <= 10 and best != worst for worst, best in pairs) > 0
    assert result.users == users
    assert result.masked != result.values


def test_hand_made_ranks() -> None:
    scores = torch.tensor([[9.0, 1.0, 3.0, 2.0], [9.0, 5.0, 5.0, 7.0], [9.0, 4.0, 4.0, 4.0]])
    rank, ties = target_ranks(scores, torch.tensor([2, 1, 3]))
    assert rank.tolist() == [1, 3, 3]  # the 9 of the padding column is ignored
    assert ties.tolist() == [0, 1, 2]


def test_removing_the_target_leaves_it_ranked() -> None:
    scores = torch.tensor([[0.0, 1.0, 3.0, 2.0]])
    removed = torch.tensor([[False, True, True, True]])
    rank, _ = target_ranks(scores, torch.tensor([1]), removed)
    assert rank.tolist() == [1]


def test_infinite_scores_rank_like_others() -> None:
    scores = torch.tensor([[0.0, math.inf, -math.inf, 1.0]])
    assert [int(target_ranks(scores, torch.tensor([t]))[0]) for t in (1, 2, 3)] == [1, 3, 2]


def test_nan_is_an_error_except_in_the_padding_column() -> None:
    nothing, scores = torch.zeros(2, 5, dtype=torch.bool), torch.zeros(2, 5)
    scores[:, 0] = torch.nan
    counts, target = RankingCounts(CPU), torch.tensor([1, 2])
    ranks = counts.add(scores, target, nothing)
    assert summarize(ranks, counts.read()).values["HR@10"] == 1

    scores[1, 4] = torch.nan
    counts.add(scores, target, nothing)
    with pytest.raises(RunError, match="NaN scores for 1 of 4 users"):
        summarize(torch.cat([ranks, ranks], 1), counts.read())
    counts.reset()
    scores[1, 4] = 0.0
    assert summarize(counts.add(scores, target, nothing), counts.read()).values["HR@10"] == 1


def test_no_users_is_an_error() -> None:
    with pytest.raises(RunError, match="no users"):
        summarize(torch.zeros(2, 0, dtype=torch.int32), RankingCounts(CPU).read())
