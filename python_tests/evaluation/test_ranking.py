"""Rankings by CUDA graphs, on the CPU with fake ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from python_tests.support.gpu import needs_gpu
from python_tests.support.graphs import FakeGraph
from recgrela.data import DataConfig, EvalBatches, load
from recgrela.evaluation import ranking
from recgrela.evaluation.ranking import Ranker
from recgrela.models import MODELS, build
from recgrela.parallel import score_blocks
from recgrela.system.graphs import Capture, CudaGraphs

DATA = DataConfig(synthetic_users=60, synthetic_items=40, synthetic_events=20, max_len=30)
MODELS_AND_PADDING = [("RecGRELA", None), ("SASRec", None), ("LinRec", "mask"), ("LinRec", "attend")]


def make(name: str, padding: str | None, capture: Capture | None, device: str = "cpu") -> Any:
    """A ranker of a fresh small model, and the batches of both splits, of which the last is smaller."""
    torch.manual_seed(1)
    data = load(DATA)
    sizes = {"hidden_size": 16, "num_heads": 2, "num_layers": 2, **({"padding": padding} if padding else {})}
    model = build(MODELS[name].config(**sizes), data.n_items, DATA.max_len).to(device)
    splits = [EvalBatches(data, split, DATA.max_len, 13, device) for split in ("valid", "test")]
    return Ranker(model, splits[0], 1 << 20, capture), splits, model


@pytest.mark.parametrize(("name", "padding"), MODELS_AND_PADDING)
def test_graphs_rank_as_plain_passes(name: str, padding: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recgrela.data.filling.MIN_MULTIPLE", 16)
    plain, splits, _ = make(name, padding, None)
    graph = FakeGraph()
    ranker, _, model = make(name, padding, graph)
    model.train()
    for _ in range(3):
        for batches in splits:
            expected, got = plain(batches), ranker(batches)
            assert got == expected
            assert torch.equal(got.ranks, expected.ranks)
    assert ranker.obstacle is None and model.training
    assert graph.replays > graph.captures > 0


@pytest.mark.parametrize("name", ["RecGRELA", "SASRec"])
def test_a_catalogue_in_blocks_ranks_as_a_whole_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with graphs, which then hold the encoder only."""
    monkeypatch.setattr("recgrela.data.filling.MIN_MULTIPLE", 16)
    whole, splits, model = make(name, None, None)
    popularity = load(DATA).train_item_counts()
    expected = [whole(batches, popularity=popularity) for batches in splits]
    monkeypatch.setitem(ranking.MAX_SCORES, "cpu", 100)
    monkeypatch.setattr(score_blocks, "COLUMNS", 8)
    graph = FakeGraph()
    for ranker in (Ranker(model, splits[0], 1 << 20), Ranker(model, splits[0], 1 << 20, graph)):
        for _ in range(3):
            for batches, one in zip(splits, expected, strict=True):
                got = ranker(batches, popularity=popularity)
                assert torch.equal(got.ranks, one.ranks) and torch.equal(got.items, one.items)
                assert ranker(batches).ranks.equal(one.ranks)
                assert got.lists is not None and one.lists is not None
                assert got.lists.target_popularity == one.lists.target_popularity
    assert graph.replays > graph.captures > 0


def test_batches_that_are_cut_are_not_captured() -> None:
    _, splits, model = make("RecGRELA", None, None)
    graph = FakeGraph()
    ranker = Ranker(model, splits[0], 40, graph)
    assert "train.max_tokens 40 cuts batches into several passes" in str(ranker.obstacle)
    assert ranker(splits[0]) == Ranker(model, splits[0], 1 << 20)(splits[0])
    assert graph.captures == 0


@needs_gpu
@pytest.mark.parametrize(("name", "padding"), MODELS_AND_PADDING)
def test_cuda_graphs_rank_as_plain_passes(name: str, padding: str | None) -> None:
    """With the same bits, so the same ties."""
    results = []
    for max_graphs in (16, 0):
        ranker, splits, _ = make(name, padding, CudaGraphs(torch.device("cuda")), "cuda")
        ranker._graphed.MAX_GRAPHS = max_graphs
        results.append([ranker(batches) for _ in range(3) for batches in splits])
    for captured, plain in zip(*results, strict=True):
        assert captured == plain and torch.equal(captured.ranks, plain.ranks)
