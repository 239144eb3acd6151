from __future__ import annotations

import pytest
import torch

from python_tests.support.ranking import assert_best
from recgrela.data import DataConfig, EvalBatches, load
from recgrela.evaluation.lists import ListCounts
from recgrela.evaluation.ranking import Ranker
from recgrela.models import MODELS, build
from recgrela.parallel.processes import Processes


def test_hand_made_lists() -> None:
    counts = ListCounts(torch.tensor([0, 8, 4, 2, 1]), (1, 3))
    counts.add(torch.tensor([[[1, 2, 3], [1, 3, 2]], [[2, 3, 4], [4, -1, -1]]]), torch.tensor([1, 2]))
    counts.add(torch.tensor([[[1, 4, 2]], [[2, 4, -1]]]), torch.tensor([4]))
    figures = counts.figures(Processes())
    assert figures.coverage == {"coverage@1": 1 / 4, "coverage@3": 1}
    assert figures.popularity == {"popularity@1": 8, "popularity@3": (14 + 14 + 13) / 9}
    assert figures.masked_coverage == {"coverage@1": 2 / 4, "coverage@3": 3 / 4}
    assert figures.masked_popularity == {"popularity@1": 9 / 3, "popularity@3": (7 + 1 + 5) / 6}
    assert figures.target_popularity == (8 + 4 + 1) / 3


def test_lists_of_a_model_are_its_best_items_and_independent_of_batches() -> None:
    data = load(DataConfig(synthetic_users=40, synthetic_items=40, synthetic_events=15))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_heads": 2, "num_layers": 1}
    model = build(MODELS["SASRec"].config(**sizes), data.n_items, 30).eval()
    popularity, cutoffs = data.train_item_counts(), (1, 4)
    found = []
    for size in (7, 40):
        batches = EvalBatches(data, "test", 30, size)
        ranker = Ranker(model, batches, 1 << 20, cutoffs=cutoffs)
        found.append(ranker(batches, popularity=popularity).lists)
    assert found[0] == found[1]
    (batch,) = batches
    with torch.no_grad():
        scores = model.score_packed(batch.items, batch.cu_seqlens, batch.max_seqlen)
    removed = torch.zeros_like(scores, dtype=torch.bool)
    removed[batches.seen(batch)] = True
    lists = []
    for mask in (torch.zeros_like(removed), removed):
        mask[:, 0] = True
        lists.append(torch.where(mask, -torch.inf, scores).topk(4).indices)
        assert_best(scores, mask, lists[-1])
    expected = ListCounts(popularity, cutoffs)
    expected.add(torch.stack(lists), batch.target)
    assert expected.figures(Processes()) == found[0]
    assert found[0] is not None
    assert found[0].target_popularity == pytest.approx(popularity[batch.target].double().mean().item())
