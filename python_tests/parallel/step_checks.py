"""Checks of training steps and rankings in several processes; `CHECKS` has those of sharded tables too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from python_tests.models.forms import small
from python_tests.parallel.sharded_checks import CHECKS, D, check
from python_tests.support.graphs import FakeGraph
from python_tests.support.tensors import assert_close
from recgrela.data import DataConfig, EvalBatches, TrainBatches, load
from recgrela.evaluation.ranking import Ranker
from recgrela.models import build
from recgrela.models.base import PER_ITEM
from recgrela.models.capture import filling_for
from recgrela.parallel.launch import Launch
from recgrela.parallel.processes import LostProcess, Processes
from recgrela.parallel.rows import RowShards
from recgrela.parallel.sharded_cross_entropy import sharded_linear_cross_entropy
from recgrela.parallel.sharded_embedding import sharded_embedding
from recgrela.settings.train import TrainConfig
from recgrela.system.graphs import GraphedFunction
from recgrela.training.losses import FullSoftmax
from recgrela.training.step import GraphedStep, TrainStep

__all__ = ["CHECKS"]


@check
def steps_and_rankings_equal_one_process(rank: int, world: int) -> None:
    """Also if processes cut their shares into different numbers of parts, or have no batch to rank."""
    settings = DataConfig(synthetic_users=30, synthetic_items=40, synthetic_events=10, max_len=10)
    data, train = load(settings), TrainConfig(objective="last", batch_size=20)
    results = []
    for processes in (Processes(), Processes(Launch(rank, world, rank, world))):
        torch.manual_seed(1)
        rows = None if processes.is_alone else RowShards(data.n_items, rank, world)
        model = build(small("LRURec", dropout=0.0), data.n_items, 10, rows).double()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        max_tokens = 1000 if processes.is_alone else 10 + 40 * rank
        step = TrainStep(model, optimizer, FullSoftmax(0.1), train, max_tokens, processes)
        place = {"rank": processes.rank, "world": processes.world}
        batches = TrainBatches(data, "last", 10, 20, 0, "cpu", pieces=4, **place)
        for batch in list(batches.epoch(0))[:3]:
            step(batch, 1e-2)
        splits = EvalBatches(data, "valid", 10, 12, **place)
        popularity = data.train_item_counts()
        ranking = Ranker(model, splits, max_tokens, processes=processes)(splits, popularity=popularity)
        results.append((model, step.loss_sum, ranking))
    (whole, loss_sum, expected), (model, loss_share, got) = results
    torch.distributed.all_reduce(loss_share)
    assert_close("loss", loss_sum, loss_share, 1e-12)
    for (name, a), b in zip(whole.named_parameters(), model.parameters(), strict=True):
        assert_close(name, a[RowShards(data.n_items, rank, world).slice] if name in PER_ITEM else a, b, 1e-9)
    assert torch.equal(expected.ranks, got.ranks) and expected == got


@check
def graphed_steps_equal_one_process(rank: int, world: int) -> None:
    """Whichever process captures which call; a last share may be empty."""
    settings = DataConfig(synthetic_users=30, synthetic_items=40, synthetic_events=10, max_len=10)
    data = load(settings)
    for objective in ("all", "last"):
        train = TrainConfig(objective=objective, batch_size=20)
        results = []
        for processes in (Processes(), Processes(Launch(rank, world, rank, world))):
            torch.manual_seed(1)
            model = build(small("RecGRELA", dropout=0.0, drop_path=0.0), data.n_items, 10).double()
            optimizer = torch.optim.Adam(model.parameters(), 1e-2)
            place = {"rank": processes.rank, "world": processes.world}
            batches = TrainBatches(data, objective, 10, 20, 0, "cpu", pieces=4, **place)
            step = TrainStep(model, optimizer, FullSoftmax(), train, 1000, processes)
            take_step: Any = step
            if not processes.is_alone:
                graph = FakeGraph()
                GraphedFunction.WARM_UP = 1 + 2 * rank
                take_step = GraphedStep(step, filling_for(model, objective, batches.max_seqlen), graph)
            for batch in [*list(batches.epoch(0))[-2:], *batches.epoch(1)]:  # the last one is smaller
                take_step(batch, 1e-2)
            results.append((model, step.loss_sum))
        (whole, loss_sum), (model, loss_share) = results
        torch.distributed.all_reduce(loss_share)
        assert graph.replays > 0
        assert_close("loss", loss_sum, loss_share, 1e-9)
        for (name, a), b in zip(whole.named_parameters(), model.parameters(), strict=True):
            assert_close(f"{objective} {name}", a, b, 1e-7)


@check
def a_process_that_has_ended_is_an_error(rank: int, world: int) -> None:
    """The last check: the last process returns and ends."""
    rows, hidden = RowShards(13, rank, world), torch.randn(2, D).requires_grad_()
    target, shard = torch.tensor([1, 2]), torch.randn(rows.count, D).requires_grad_()
    loss = sharded_linear_cross_entropy(hidden, shard, target, rows)
    if rank < world - 1:
        with pytest.raises(LostProcess, match="lost the connection"):
            loss.backward()
        with pytest.raises(LostProcess, match="lost the connection"):
            sharded_embedding(target, shard, rows)
