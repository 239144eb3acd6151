"""Checks of sharded item tables against whole ones, which all ranks of a group run together.

Every rank makes the operands of all ranks from one seed, so that each knows the expected results.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from python_tests.models.forms import FORMS, MAX_LEN, N_ITEMS, packed, small
from python_tests.support.ranking import assert_best, target_ranks
from python_tests.support.ranks import Check
from python_tests.support.tensors import assert_close, cu_seqlens_of
from recgrela.models import MODELS, SequenceModel, build
from recgrela.models.base import PER_ITEM
from recgrela.ops import embedding, linear_cross_entropy
from recgrela.ops.linear_cross_entropy import _by_chunks
from recgrela.parallel import gathering
from recgrela.parallel.rows import RowShards
from recgrela.parallel.sharded_cross_entropy import _CrossEntropy, _Options, sharded_linear_cross_entropy
from recgrela.parallel.sharded_embedding import sharded_embedding
from recgrela.parallel.sharded_ranks import sharded_ranks
from recgrela.parallel.table import ShardedTable
from recgrela.training.losses import GBCE, SampledLoss, SampledSoftmax

D = 8
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def sizes_of(world: int) -> list[list[int]]:
    """Numbers of rows of each rank: equal, uneven, with none on some ranks, with none on any."""
    return [[6] * world, [3 * r + 1 for r in range(world)], [0, 9, 0, 2][:world], [0] * world]


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


@check
def look_ups_equal_the_whole_table(rank: int, world: int) -> None:
    for n_items in (1, 2, 13):
        rows = RowShards(n_items, rank, world)
        for sizes in sizes_of(world):
            for padding_idx in {None, 0, n_items - 1}:
                torch.manual_seed(n_items)
                table = torch.randn(n_items, D, dtype=torch.float64).requires_grad_()
                items = [torch.randint(0, n_items, (size,)) for size in sizes]  # repeated, with padding
                d_y = [torch.randn(size, D, dtype=torch.float64) for size in sizes]
                expected = [embedding(x, table, padding_idx=padding_idx) for x in items]
                (d_table,) = torch.autograd.grad(expected, table, d_y)
                shard = leaf(table[rows.slice])
                got = sharded_embedding(items[rank], shard, rows, padding_idx=padding_idx)
                assert torch.equal(got, expected[rank])
                (d_shard,) = torch.autograd.grad(got, shard, d_y[rank])
                assert_close("d_shard", d_table[rows.slice], d_shard, 1e-12)


def whole_losses(
    hidden: list[Tensor], table: Tensor, target: list[Tensor], bias: Tensor | None, smoothing: float
) -> list[Tensor]:
    return [
        linear_cross_entropy(h, table, t, bias, label_smoothing=smoothing)
        if len(h)
        else (h.sum() + table.sum() + (0 if bias is None else bias.sum())) * 0
        for h, t in zip(hidden, target, strict=True)
    ]


def cases(world: int) -> list[tuple[int, list[int], bool, float, int | None]]:
    sizes = sizes_of(world)
    some = [(13, s, True, 0.1, m) for s in sizes for m in (1, 40, None)]
    return [*some, (40, sizes[1], False, 0.0, 300), (2, sizes[1], True, 0.0, 9), (1, sizes[2], True, 1.0, 5)]


@check
def losses_equal_the_whole_table(rank: int, world: int) -> None:
    for n_items, sizes, has_bias, smoothing, max_logits in cases(world):
        rows = RowShards(n_items, rank, world)
        torch.manual_seed(n_items)
        table = torch.randn(n_items, D, dtype=torch.float64).requires_grad_()
        bias = torch.randn(n_items, dtype=torch.float64).requires_grad_() if has_bias else None
        hidden = [torch.randn(size, D, dtype=torch.float64).requires_grad_() for size in sizes]
        target = [torch.randint(0, n_items, (size,)) for size in sizes]
        d_loss = torch.randn(world, dtype=torch.float64)  # differs between ranks
        losses = whole_losses(hidden, table, target, bias, smoothing)
        shared = [table] if bias is None else [table, bias]
        expected = torch.autograd.grad(losses, [*hidden, *shared], list(d_loss))
        own = [leaf(x[rows.slice]) for x in shared]
        h = leaf(hidden[rank])
        twice = []
        for _ in range(2):
            loss = sharded_linear_cross_entropy(
                h,
                own[0],
                target[rank],
                rows,
                bias_shard=own[1] if has_bias else None,
                label_smoothing=smoothing,
                max_logits=max_logits,
            )
            twice.append([loss.detach(), *torch.autograd.grad(loss, [h, *own], d_loss[rank])])
        assert all(torch.equal(a, b) for a, b in zip(*twice, strict=True)), "not deterministic"
        loss, d_hidden, *gradients = twice[0]
        assert_close("loss", losses[rank].detach(), loss, 1e-12, scale=1)
        assert_close("d_hidden", expected[rank], d_hidden, 1e-12, scale=1e-3)
        for whole, got in zip(expected[world:], gradients, strict=True):
            assert_close("d_shard, d_bias", whole[rows.slice], got, 1e-12, scale=1e-3)


@check
def gradients_that_only_some_ranks_need(rank: int, world: int) -> None:
    """The hidden rows of rank 0 need no gradient, and the table of no rank does."""
    torch.manual_seed(1)
    rows, table = RowShards(13, rank, world), torch.randn(13, D, dtype=torch.float64)
    hidden, target = torch.randn(5, D, dtype=torch.float64), torch.randint(0, 13, (5,))
    expected = torch.autograd.grad(linear_cross_entropy(leaf_ := leaf(hidden), table, target), leaf_)[0]
    shard = table[rows.slice]
    own = leaf(hidden)
    loss = sharded_linear_cross_entropy(own, shard, target, rows)
    assert_close("d_hidden", expected, torch.autograd.grad(loss, own)[0], 1e-12)
    trained, own = leaf(shard), hidden if rank == 0 else leaf(hidden)
    sharded_linear_cross_entropy(own, trained, target, rows).backward()
    assert rank == 0 or own.grad is not None
    with torch.no_grad():
        assert not sharded_linear_cross_entropy(own, trained, target, rows).requires_grad


@check
def half_precision_equals_the_whole_table(rank: int, world: int) -> None:
    torch.manual_seed(2)
    rows = RowShards(13, rank, world)
    table, bias = torch.randn(13, D), torch.randn(13)
    hidden, target = torch.randn(6, D, dtype=torch.bfloat16), torch.randint(0, 13, (6,))
    whole = [leaf(x) for x in (hidden, table, bias)]
    shards = [leaf(hidden), leaf(table[rows.slice]), leaf(bias[rows.slice])]
    loss = linear_cross_entropy(whole[0], whole[1], target, whole[2])
    got = sharded_linear_cross_entropy(shards[0], shards[1], target, rows, bias_shard=shards[2])
    assert got.dtype == loss.dtype
    assert_close("loss", loss, got, 1e-6)
    d_whole, d_shards = torch.autograd.grad(loss, whole), torch.autograd.grad(got, shards)
    assert_close("d_hidden", d_whole[0].float(), d_shards[0].float(), 2**-7)
    assert_close("d_shard", world * d_whole[1][rows.slice], d_shards[1], 1e-6, scale=0.1)
    assert_close("d_bias", world * d_whole[2][rows.slice], d_shards[2], 1e-6, scale=0.1)
    # Products of bfloat16 rows, as on a GPU.
    options = _Options(rows, None, [6] * world, 0.1, 30, torch.bfloat16, True)
    loss, *d_whole = _by_chunks(hidden, table, target, bias, torch.bfloat16, 0.1, 30, True, True, True)  # type: ignore[assignment]
    got = _CrossEntropy.apply(*shards, target, options)
    d_shards = torch.autograd.grad(got, shards)
    assert_close("loss", loss, got, 1e-5)
    assert_close("d_hidden", d_whole[0].float(), d_shards[0].float(), 2**-6)
    assert_close("d_shard", world * d_whole[1][rows.slice], d_shards[1], 2**-6, scale=0.1)
    # Weights that float16 would round to zero.
    for shard in shards:
        shard.grad = None
    (_CrossEntropy.apply(*shards, target, options._replace(row_dtype=torch.float16)) * 1e-9).backward()
    assert shards[1].grad is not None
    assert_close("d_shard", world * d_whole[1][rows.slice] * 1e-9, shards[1].grad, 2**-6, scale=1e-10)


def exact(*shape: int) -> Tensor:
    """Small integers, whose products are exact in any order, so that many scores are equal."""
    return torch.randint(-2, 3, shape).float()


@check
def ranks_equal_those_of_all_scores(rank: int, world: int) -> None:
    for n_items, has_bias, max_logits in (
        (2, False, 64),
        (13, True, 1),
        (300, True, 500),
        (300, False, None),
    ):
        rows = RowShards(n_items, rank, world)
        for sizes in sizes_of(world):
            torch.manual_seed(n_items)
            table = exact(n_items, 4)
            bias = exact(n_items) if has_bias else None
            hidden = [exact(size, 4) for size in sizes]
            if sizes[-1]:
                hidden[-1][0] = torch.nan
            target = [torch.randint(1, n_items, (size,)) for size in sizes]
            removed = [torch.rand(size, n_items) < 0.3 for size in sizes]
            pairs = removed[rank].nonzero()
            pairs = pairs.repeat(2, 1)[torch.randperm(2 * len(pairs))]  # repeated, in any order
            scores = hidden[rank] @ table.T + (0 if bias is None else bias)
            expected = [target_ranks(scores, target[rank], mask) for mask in (None, removed[rank])]
            ranking, ties, has_nan, best = sharded_ranks(
                hidden[rank],
                target[rank],
                (pairs[:, 0], pairs[:, 1]),
                table[rows.slice],
                rows,
                bias_shard=None if bias is None else bias[rows.slice],
                k=6,
                max_logits=max_logits,
            )
            for items, mask in zip(best, (None, removed[rank]), strict=True):
                assert_best(scores, mask, items)
            assert torch.equal(ranking, torch.stack([r for r, _ in expected]))
            assert torch.equal(ties, torch.stack([t for _, t in expected]))
            assert torch.equal(has_nan, scores.isnan().any(1))


@check
def equal_rows_have_equal_scores(rank: int, world: int) -> None:
    """Copies of 50 rows of any numbers are ties, in whatever block and on whatever rank they are."""
    torch.manual_seed(4)
    copies = 9
    table = torch.cat([torch.zeros(1, 64), torch.randn(50, 64).repeat(copies, 1)])
    rows, hidden = RowShards(len(table), rank, world), torch.randn(7, 64)
    target = torch.randint(1, len(table), (7,))
    none = torch.empty(0, dtype=torch.int64)
    ties = sharded_ranks(hidden, target, (none, none), table[rows.slice], rows, max_logits=1000).ties
    assert (ties == copies - 1).all(), ties


def raises(text: str, call: Callable[[], object]) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        call()


@check
def wrong_operands_are_errors_of_every_rank(rank: int, world: int) -> None:
    last, rows = rank == world - 1, RowShards(9, rank, world)
    shard, hidden = torch.randn(rows.count, D).requires_grad_(), torch.randn(3, D)
    target, items = torch.tensor([1, 2, 8]), torch.tensor([1, 2, 8])
    other, pair = f"rank {world - 1}", (torch.tensor([0]), torch.tensor([1]))
    for bad in (torch.tensor([1, 9]), torch.tensor([-1, 2]), torch.tensor([1.0]), items[None]):
        name = "items" if last else other
        raises(name, lambda bad=bad: sharded_embedding(bad if last else items, shard, rows))
    for bad in (torch.tensor([1, 9, 0]), torch.tensor([-1, 2, 0]), target[:2], target.int()):
        name = "target" if last else other
        raises(
            name, lambda bad=bad: sharded_linear_cross_entropy(hidden, shard, bad if last else target, rows)
        )
        if bad.dtype == torch.int64:
            raises(name, lambda bad=bad: sharded_ranks(hidden, bad if last else target, pair, shard, rows))
    small = torch.randn(rows.count + 1, D)
    name = "shard must be" if last else other
    raises(name, lambda: sharded_embedding(items, small if last else shard, rows))
    raises(name, lambda: sharded_linear_cross_entropy(hidden, small if last else shard, target, rows))
    name = "label_smoothing" if last else other
    raises(
        name,
        lambda: sharded_linear_cross_entropy(hidden, shard, target, rows, label_smoothing=2.0 * last),
    )
    raises(
        "label_smoothing must be the same",
        lambda: sharded_linear_cross_entropy(hidden, shard, target, rows, label_smoothing=0.5 * last),
    )
    raises(
        "whether the table needs", lambda: sharded_embedding(items, shard.detach() if last else shard, rows)
    )
    raises("width", lambda: sharded_embedding(items, shard[:, : D - last], rows))
    users = torch.tensor([3 if last else 0])
    raises("users" if last else other, lambda: sharded_ranks(hidden, target, (users, pair[1]), shard, rows))
    raises("divided for rank", lambda: sharded_embedding(items, shard, RowShards(9, 0, world + 1)))
    with pytest.raises(NotImplementedError):
        loss = sharded_linear_cross_entropy(leaf(hidden), shard, target, rows)
        torch.autograd.grad(loss, shard, create_graph=True)
    sharded_embedding(items, shard, rows)  # the group still works


# ---- models


def share(rank: int, world: int, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sequences of a rank: rank 0 has none if there are more than two ranks."""
    first = (0, 1, 4) if world == 2 else (0, 0, 2, 3, 4)
    lengths, (items, cu_seqlens, _) = [12, 1, 7, 2], packed()
    begin, end = first[rank], first[rank + 1]
    rows = slice(int(cu_seqlens[begin]), int(cu_seqlens[end]))
    own = target[begin:end] if len(target) == len(lengths) else target[rows]
    return items[rows], cu_seqlens_of(lengths[begin:end]), own


def train(
    model: SequenceModel, batch: tuple[Tensor, Tensor, Tensor], objective: str, total: int, **loss: object
) -> list[float]:
    """Two steps on a share of a batch with `total` targets; the losses of the whole batch."""
    items, cu_seqlens, target = batch
    # Adam would magnify the rounding of sampled losses, whose scores are float32.
    kind, lr = (torch.optim.SGD, 1.0) if loss else (torch.optim.Adam, 1e-2)
    optimizer, losses = kind(model.parameters(), lr), []
    for _ in range(2):
        optimizer.zero_grad()
        mean = model.loss_packed(items, cu_seqlens, target, MAX_LEN, objective, **loss)  # type: ignore[arg-type]
        value = mean * (len(target) / total)
        value.backward()
        table = model.item_embedding
        if isinstance(table, ShardedTable):
            for name, p in model.named_parameters():
                if name not in PER_ITEM:
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                    torch.distributed.all_reduce(p.grad)
            value = value.detach().clone()
            torch.distributed.all_reduce(value)
        optimizer.step()
        losses.append(value.item())
    return losses


def trained_alike(
    form: str, objective: str, rank: int, world: int, ratio: float = 1e-9, **loss: object
) -> None:
    config = FORMS[form]
    target = torch.arange(1, 5) if objective == "last" else torch.arange(22) % (N_ITEMS - 1) + 1
    torch.manual_seed(1)
    whole = build(config, N_ITEMS, MAX_LEN)
    after = torch.rand(1)
    torch.manual_seed(1)
    model = build(config, N_ITEMS, MAX_LEN, RowShards(N_ITEMS, rank, world))
    assert torch.equal(torch.rand(1), after), "another stream of random numbers"
    rows = RowShards(N_ITEMS, rank, world).slice
    names = dict(whole.named_parameters())

    def compare(ratio: float) -> None:
        for name, p in model.named_parameters():
            expected = names[name]
            if name in PER_ITEM:
                expected = expected[rows]
            assert_close(name, expected, p, ratio)

    compare(0)
    model, whole = model.double().eval(), whole.double().eval()
    items, cu_seqlens, _ = packed()
    expected = train(whole, (items, cu_seqlens, target), objective, len(target), **loss)
    got = train(model, share(rank, world, target), objective, len(target), **loss)
    assert_close("losses", torch.tensor(expected), torch.tensor(got), ratio)
    names = dict(whole.named_parameters())
    compare(ratio)


@check
def models_train_like_whole_ones(rank: int, world: int) -> None:
    for form in [*MODELS, "RecGRELA-attend"] if world == 2 else ["RecGRELA"]:
        trained_alike(form, "last", rank, world)
    trained_alike("RecGRELA" if world == 2 else "LRURec", "all", rank, world)


@check
def sampled_losses_train_like_whole_ones(rank: int, world: int) -> None:
    counts, negatives = torch.bincount(packed()[0], minlength=N_ITEMS), torch.arange(1, 13)
    losses: list[SampledLoss] = [SampledSoftmax(counts, 12), GBCE(counts, 12, 0.75)]
    for loss in losses:
        loss.draw = lambda: negatives  # type: ignore[method-assign]
        trained_alike("LRURec", "last", rank, world, 1e-5, loss=loss)


@check
def dropout_and_padding_with_a_sharded_table(rank: int, world: int) -> None:
    torch.manual_seed(1)
    whole = build(small("RecGRELA"), N_ITEMS, MAX_LEN).double()
    torch.manual_seed(1)
    model = build(small("RecGRELA"), N_ITEMS, MAX_LEN, RowShards(N_ITEMS, rank, world)).double()
    items, cu_seqlens, longest = packed()
    items[3] = 0
    hidden = []
    for m in (whole, model):
        torch.manual_seed(5)
        hidden.append(m.hidden_states(items, cu_seqlens, longest, False))
    assert torch.equal(*hidden)


@check
def the_first_rank_takes_all_rows(rank: int, world: int) -> None:
    gathering.MAX_NUMBERS = 24  # pieces of 3 rows
    for n_items in (2, 13, 40):
        rows, table = RowShards(n_items, rank, world), torch.arange(n_items * D).view(-1, D)
        pieces = list(gathering.each_piece(table[rows.slice], rows))
        assert all(len(piece) <= 3 for piece in pieces)
        assert bool(pieces) == (rank == 0)
        assert rank or torch.equal(torch.cat(pieces), table)
