"""Item tables divided over processes; the checks of several processes are in `step_checks`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from python_tests.models.forms import MAX_LEN, N_ITEMS, packed, small
from python_tests.parallel.step_checks import CHECKS
from python_tests.support.ranks import run_checks
from recgrela.models import build
from recgrela.models.transfer import transfer
from recgrela.parallel import table as table_module
from recgrela.parallel.rows import RowShards
from recgrela.parallel.sharded_cross_entropy import sharded_linear_cross_entropy
from recgrela.parallel.sharded_embedding import sharded_embedding
from recgrela.parallel.sharded_ranks import sharded_ranks
from recgrela.parallel.table import ShardedTable, draw
from recgrela.system.errors import RunError


@pytest.fixture(scope="module", params=[2, 4])
def failed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("ranks")
    return run_checks("python_tests.parallel.step_checks", request.param, folder)


@pytest.mark.parametrize("name", CHECKS)
def test_with_processes(name: str, failed: dict[str, str]) -> None:
    assert name not in failed, failed[name]


@pytest.mark.parametrize("n_items", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("world", [1, 2, 4, 5])
def test_every_row_has_one_rank(n_items: int, world: int) -> None:
    shards = [RowShards(n_items, rank, world) for rank in range(world)]
    items = torch.arange(n_items)
    assert [row for s in shards for row in range(s.begin, s.end)] == items.tolist()
    for s in shards:
        own = items[s.slice]
        assert (s.owner(own) == s.rank).all() and torch.equal(s.local(own), torch.arange(s.count))


@pytest.mark.parametrize("n_items, rank, world", [(0, 0, 1), (3, 2, 2), (3, -1, 2), (3, 0, 0)])
def test_wrong_divisions(n_items: int, rank: int, world: int) -> None:
    with pytest.raises(ValueError, match="RowShards"):
        RowShards(n_items, rank, world)


@pytest.mark.parametrize("shape", [(1, 3), (5, 3), (16, 4), (100, 7), (99, 5), (50,)])
def test_draws_do_not_depend_on_the_division(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "DRAWN", 64)
    for fill in (nn.init.normal_, nn.init.trunc_normal_):
        torch.manual_seed(1)
        whole = torch.empty(shape)
        draw(whole, fill)
        after = torch.rand(1)
        if fill is nn.init.normal_:
            torch.manual_seed(1)
            assert torch.equal(nn.init.normal_(torch.empty(shape)), whole)
            assert torch.equal(torch.rand(1), after)
        for world in (1, 2, 4):
            for rank in range(world):
                rows = RowShards(shape[0], rank, world)
                shard = torch.empty(rows.count, *shape[1:])
                torch.manual_seed(1)
                draw(shard, fill, rows)
                assert torch.equal(shard, whole[rows.slice]) and torch.equal(torch.rand(1), after)


def test_a_new_table_is_that_of_nn_embedding() -> None:
    torch.manual_seed(1)
    whole = nn.Embedding(13, 8, padding_idx=0).weight
    for rank in range(3):
        rows = RowShards(13, rank, 3)
        torch.manual_seed(1)
        assert torch.equal(ShardedTable(rows, 8).weight, whole[rows.slice])


def test_one_rank_needs_no_process_group() -> None:
    torch.manual_seed(1)
    model = build(small("LRURec"), N_ITEMS, MAX_LEN, RowShards(N_ITEMS, 0, 1)).eval()
    torch.manual_seed(1)
    whole = build(small("LRURec"), N_ITEMS, MAX_LEN).eval()
    whole.load_state_dict(model.state_dict())
    items, cu_seqlens, longest = packed()
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = [m.loss_packed(items, cu_seqlens, torch.arange(1, 5), longest) for m in (model, whole)]
        torch.testing.assert_close(*losses)
    with pytest.raises(RunError, match="sharded"):
        model.score_packed(items, cu_seqlens, longest)


def test_transfer_to_a_shard() -> None:
    """The rows of the rank are copied, or kept where the source has no item."""
    torch.manual_seed(1)
    source = build(small("LRURec"), 40, MAX_LEN)
    chosen = np.arange(N_ITEMS) + 7
    chosen[[20, N_ITEMS - 1]] = -1
    rows = RowShards(N_ITEMS, 1, 2)
    shard = build(small("LRURec"), N_ITEMS, MAX_LEN, rows)
    before = shard.item_embedding.weight.clone()
    transfer(source, shard, chosen)
    for local, item in enumerate(chosen[rows.slice]):
        expected = before[local] if item < 0 else source.item_embedding.weight[item]
        assert torch.equal(shard.item_embedding.weight[local], expected)
        assert item < 0 or shard.item_bias[local] == source.item_bias[item]


def test_several_ranks_need_one() -> None:
    with pytest.raises(ValueError, match="process group"):
        sharded_embedding(torch.tensor([1]), torch.randn(3, 2), RowShards(6, 0, 2))


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements of a tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, tuple | list) else (made,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return made


def test_no_tensor_is_larger_than_the_shard() -> None:
    rows, width, size, max_logits = RowShards(1000, 0, 1), 8, 300, 2000
    shard, bias = torch.randn(1000, width).requires_grad_(), torch.randn(1000).requires_grad_()
    hidden, target = torch.randn(size, width).requires_grad_(), torch.randint(1, 1000, (size,))
    pairs = (torch.arange(size), target.flip(0))
    with LargestTensor() as largest:
        loss = sharded_linear_cross_entropy(
            hidden, shard, target, rows, bias_shard=bias, label_smoothing=0.1, max_logits=max_logits
        )
        loss.backward()
        sharded_ranks(hidden, target, pairs, shard, rows, bias_shard=bias, max_logits=max_logits)
    assert largest.numel == shard.numel()
