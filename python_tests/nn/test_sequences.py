"""Rows, sequences and the dense form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from python_tests.support.tensors import cu_seqlens_of
from recgrela.nn import AddNorm, PostNormBlock, SeedStream, Sequences, run_blocks, select_rows
from recgrela.nn.sequences import search_index

LENGTHS = [3, 1, 4]


@pytest.fixture
def sequences() -> Sequences:
    return Sequences.of(cu_seqlens_of(LENGTHS), 8, 4)


def test_places(sequences: Sequences) -> None:
    assert sequences.batch == 3 and sequences.num_rows == 8
    assert sequences.index.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert sequences.positions().tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert sequences.last_items().tolist() == [2, 3, 7]


@pytest.mark.parametrize(
    "limit, rows", [(None, [2, 1, 0, 3, 7, 6, 5, 4]), (2, [1, 0, 2, 3, 5, 4, 6, 7]), (1, list(range(8)))]
)
def test_reversed_rows(sequences: Sequences, limit: int | None, rows: list[int]) -> None:
    order = sequences.reversed_rows(limit)
    assert order.tolist() == rows
    assert order[order].tolist() == list(range(8))


def test_selected_rows_and_their_gradient() -> None:
    x = torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([2, 3, 7])
    assert torch.equal(select_rows(x, rows), x[rows])
    assert torch.autograd.gradcheck(select_rows, (x, rows))


def test_wanted_rows(sequences: Sequences) -> None:
    x = torch.randn(8, 2)
    assert sequences.select(x) is x
    last = sequences.last_only()
    assert torch.equal(last.select(x), x[[2, 3, 7]])
    assert last.cu_seqlens is sequences.cu_seqlens and sequences.wanted is None
    assert last.with_wanted(None).select(x) is x


@pytest.mark.parametrize("length", [4, 6])
def test_dense_form(sequences: Sequences, length: int) -> None:
    x = torch.randn(8, 2)
    dense = sequences.to_dense(x, length)
    assert dense.shape == (3, length, 2)
    mask = sequences.item_mask(length)
    assert mask.sum(1).tolist() == LENGTHS
    assert torch.equal(dense[mask], x) and not dense[~mask].any()
    assert torch.equal(sequences.to_packed(dense), x)


def test_dense_form_of_equal_lengths_is_a_view() -> None:
    equal, x = Sequences.of(cu_seqlens_of([4, 4]), 8, 4), torch.randn(8, 2)
    assert equal.to_dense(x).data_ptr() == x.data_ptr() == equal.to_packed(equal.to_dense(x)).data_ptr()


def test_padded(sequences: Sequences) -> None:
    padded, rows = sequences.padded(5)
    assert rows.tolist() == [0, 1, 2, 5, 10, 11, 12, 13]
    assert padded.cu_seqlens.tolist() == [0, 5, 10, 15] and padded.max_seqlen == 5
    assert padded.last_items().tolist() == [2, 5, 13]
    assert padded.item_mask(5).sum(1).tolist() == LENGTHS


def test_only_the_last_block_is_limited_to_the_wanted_rows(sequences: Sequences) -> None:
    calls = []

    class Block(nn.Module):
        def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
            calls.append(sequences.wanted is None)
            return sequences.select(x)

    blocks, x = nn.ModuleList([Block(), Block(), Block()]), torch.randn(8, 2)
    assert run_blocks(blocks, x, sequences.last_only()).shape == (3, 2)
    assert calls == [True, True, False]
    assert run_blocks(blocks, x, sequences) is x


def test_drop_path_drops_whole_sequences(sequences: Sequences) -> None:
    norm, x, branch = AddNorm(2, drop_path=0.5).train(), torch.zeros(8, 2), torch.ones(8, 2)
    seen = set()
    for _ in range(20):
        dropped = sequences.to_dense(norm(x, branch, sequences)[0])
        for row, length in zip(dropped, LENGTHS, strict=True):
            assert torch.equal(row[:length], row[:1].expand(length, 2))
            seen.add(row[0, 0].item())
    assert seen == {0.0, 2.0}
    assert norm(x[:3], branch[:3], sequences.last_only())[0].shape == (3, 2)
    assert torch.equal(norm.eval()(x, branch, sequences)[0], branch)


def test_a_forward_pass_draws_its_seeds_together(sequences: Sequences) -> None:
    assert sequences.seeds(2) is None
    stream = SeedStream(torch.device("cpu"))
    torch.manual_seed(0)
    shared = replace(sequences, stream=stream)
    taken = [shared.seeds(2), shared.last_only().seeds(3), *(shared.seeds(1) for _ in range(SeedStream.DRAW))]
    assert all(seeds is not None for seeds in taken)
    values = torch.cat([seeds for seeds in taken if seeds is not None])
    assert len(values.unique()) == len(values) == 5 + SeedStream.DRAW
    torch.manual_seed(0)
    assert torch.equal(values[:5], SeedStream(torch.device("cpu")).take(5))


def test_a_block_names_its_mixer_in_checkpoints(sequences: Sequences) -> None:
    class Mixer(nn.Linear):
        def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
            return super().forward(sequences.select(x))

    x = torch.randn(8, 4)
    block = PostNormBlock("mixer", Mixer(4, 4), 4, dropout=0.0)
    assert next(iter(block.state_dict())) == "mixer.weight"
    mixed = nn.functional.linear(x, block.mixer.weight, block.mixer.bias)
    expected = block.ffn(nn.functional.layer_norm(mixed + x, (4,)), sequences)
    torch.testing.assert_close(block(x, sequences), expected)
    torch.testing.assert_close(block(x, sequences.last_only()), expected[[2, 3, 7]])
    block.residual = False
    assert not torch.allclose(block(x, sequences), expected)


def test_the_search_for_sequences_equals_their_index() -> None:
    """The form for devices other than the CPU, with empty sequences."""
    cu_seqlens = cu_seqlens_of([0, 3, 0, 0, 1, 4, 0])
    index = Sequences.of(cu_seqlens, 8, 5).index
    assert index.tolist() == [1, 1, 1, 4, 5, 5, 5, 5]
    assert torch.equal(search_index(torch.arange(8), cu_seqlens), index)


def test_equal_lengths_need_no_search() -> None:
    equal, uneven = (Sequences.of(cu_seqlens_of([4, 4, 4]), 12, longest) for longest in (4, 5))
    assert equal.has_equal_lengths and not uneven.has_equal_lengths
    assert torch.equal(equal.index, uneven.index)
    assert torch.equal(equal.positions(), uneven.positions())


def test_indices_are_computed_once(sequences: Sequences) -> None:
    last = sequences.last_only()
    for name, arguments in [
        ("positions", ()),
        ("dense_rows", (6,)),
        ("item_mask", (6,)),
        ("reversed_rows", (2,)),
    ]:
        first = getattr(sequences, name)(*arguments)
        assert getattr(last, name)(*arguments) is first
    assert last.index is sequences.index
    assert sequences.dense_rows(7).tolist() == [0, 1, 2, 7, 14, 15, 16, 17]
    assert sequences.reversed_rows().tolist() == [2, 1, 0, 3, 7, 6, 5, 4]
