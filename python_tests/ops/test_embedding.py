from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.support.tensors import assert_close
from recgrela.ops import dropout, embedding, embedding_reference

NAMES = ("table", "weight", "bias")
SEED = torch.tensor([123456789012345])


def operands(n_items: int, width: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = [(n_items, width), (width,), (width,)]
    return [torch.randn(*shape, dtype=dtype).requires_grad_() for shape in shapes]


def example() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Operands and other arguments of a small call, for test_support.py."""
    others = {"items": torch.tensor([3, 0, 3, 6, 2, 3]), "dropout": 0.2, "seed": SEED, "padding_idx": 0}
    return dict(zip(NAMES, operands(7, 16), strict=True)), others


def check(items: Tensor, n_items: int, width: int, norm: int = 2, **kw: Any) -> None:
    """Compares with the reference; `norm` is the number of parameters of the LayerNorm, 0 to 2."""
    inputs = operands(n_items, width)[: norm + 1]
    expected, got = embedding_reference(items, *inputs, **kw), embedding(items, *inputs, **kw)
    assert_close("y", expected, got, 1e-12)
    d_y = torch.randn_like(expected)
    grads = (torch.autograd.grad(y, inputs, d_y) for y in (expected, got))
    for name, a, b in zip(NAMES, *grads, strict=False):
        assert_close(name, a, b, 1e-11, scale=1.0)


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 47, 200, 1001])
@pytest.mark.parametrize("norm", [0, 1, 2])
def test_equals_reference_at_any_number_of_rows(rows: int, norm: int, isa: str) -> None:
    check(torch.randint(30, (rows,)), 30, 16, norm, dropout=0.2, seed=SEED, padding_idx=0)


@pytest.mark.parametrize("n_items, width", [(1, 1), (2, 3), (1000, 64), (5, 130)])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_equals_reference_at_any_size(n_items: int, width: int, rate: float, isa: str) -> None:
    check(torch.randint(n_items, (100,)), n_items, width, dropout=rate, seed=SEED if rate else None, eps=1e-6)


@pytest.mark.parametrize(
    "items", [torch.full((900,), 4), torch.arange(900), torch.arange(900).clamp(max=700) // 150]
)
@pytest.mark.parametrize("padding_idx", [None, 4])
def test_popular_items(items: Tensor, padding_idx: int | None) -> None:
    """Items whose rows are those of one chunk, of several, and of all."""
    for norm in (0, 2):
        check(items, 900, 32, norm, dropout=0.1, seed=SEED, padding_idx=padding_idx)


@pytest.mark.parametrize("padding_idx", [None, 0, 3, -1, -7])
def test_the_padding_row_gets_no_gradient(padding_idx: int | None) -> None:
    items = torch.arange(7).repeat(3)
    check(items, 7, 16, padding_idx=padding_idx)
    table, weight, bias = operands(7, 16)
    y = embedding(items, table, weight, bias, padding_idx=padding_idx)
    (d_table,) = torch.autograd.grad(y.sin().sum(), table)
    empty = set() if padding_idx is None else {padding_idx % 7}
    assert set((d_table == 0).all(1).nonzero().flatten().tolist()) == empty


def test_dropout_is_that_of_the_op() -> None:
    """The same elements are dropped, whether the seed is given or drawn."""
    table, items = torch.randn(9, 16), torch.randint(9, (50,))
    assert torch.equal(embedding(items, table, dropout=0.5, seed=SEED), dropout(table[items], 0.5, SEED))
    torch.manual_seed(0)
    drawn = embedding(items, table, dropout=0.5)
    torch.manual_seed(0)
    assert torch.equal(drawn, dropout(table[items], 0.5))


def test_float32_and_autocast() -> None:
    inputs = operands(40, 64)
    single = [x.detach().float().requires_grad_() for x in inputs]
    items = torch.randint(40, (300,))
    expected, got = embedding(items, *inputs), embedding(items, *single)
    assert got.dtype == torch.float32
    assert_close("y", expected, got, 2e-6)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = embedding(items, *single)
    assert under_autocast.dtype == torch.float32 and torch.equal(under_autocast, got)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    inputs = [x.detach().to(dtype) for x in operands(40, 64)]
    items = torch.randint(40, (300,))
    expected = embedding(items, *(x.float() for x in inputs), dropout=0.3, seed=SEED)
    assert torch.equal(embedding(items, *inputs, dropout=0.3, seed=SEED), expected.to(dtype))


def test_gradcheck() -> None:
    items = torch.tensor([3, 0, 3, 6, 2, 3])
    for inputs in (operands(7, 5), operands(7, 5)[:1]):
        assert torch.autograd.gradcheck(lambda *t: embedding(items, *t, dropout=0.3, seed=SEED), inputs)


def test_opcheck() -> None:
    table, weight, bias = operands(7, 16)
    items = torch.tensor([3, 0, 3, 6, 2, 3])
    for parameters in ((weight, bias, SEED, 1e-5, 0.3, 3), (None, None, None, 1e-5, 0.0, -1)):
        torch.library.opcheck(torch.ops.recgrela.embedding.default, (items, table, *parameters))
        detached = [x.detach() if isinstance(x, Tensor) else x for x in (table, *parameters)]
        args = (torch.randn(6, 16, dtype=torch.float64), items, *detached)
        torch.library.opcheck(torch.ops.recgrela.embedding_backward.default, args)


def test_the_number_of_threads_does_not_matter() -> None:
    inputs, items = operands(30, 64, torch.float32), torch.randint(30, (3000,))
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        y = embedding(items, *inputs, dropout=0.1, seed=SEED)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_compiles_without_a_graph_break() -> None:
    inputs, items = operands(7, 16), torch.tensor([3, 0, 3, 6, 2, 3])

    def f(*values: Tensor) -> Tensor:
        return embedding(items, *values, dropout=0.1, seed=SEED, padding_idx=0).square().sum()

    expected = torch.autograd.grad(f(*inputs), inputs)
    got = torch.autograd.grad(torch.compile(f, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    for name, a, b in zip(NAMES, expected, got, strict=True):
        assert_close(name, a, b, 1e-12)


def test_strides_do_not_matter() -> None:
    inputs, items = operands(7, 16), torch.randint(7, (20,))
    d_y = torch.randn(20, 16, dtype=torch.float64)
    expected = torch.autograd.grad(embedding(items, *inputs), inputs, d_y)
    spaced = [x.detach().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_() for x in inputs]
    slices = [torch.cat((x.detach(), x.detach()), -1)[..., : x.shape[-1]].requires_grad_() for x in inputs]
    for strided in (spaced, slices):
        y = embedding(items.repeat_interleave(3)[::3], *strided)
        got = torch.autograd.grad(y, strided, d_y.T.contiguous().T)
        for name, a, b in zip(NAMES, expected, got, strict=True):
            assert_close(name, a, b, 1e-13)


def test_bad_input() -> None:
    table, weight, bias = operands(7, 16)
    items = torch.tensor([3, 0, 6])
    for args, kw, message in [
        ((items, table[0]), {}, r"table must be \[n_items, D\]"),
        ((items, table[:, :0]), {}, "both above 0"),
        ((items, table[:0]), {}, "both above 0"),
        ((items[:, None], table), {}, r"items must be \[T\]"),
        ((items, table, weight[:3]), {}, r"weight must be \[16\]"),
        ((items, table, weight, bias[:3]), {}, r"bias must be \[16\]"),
        ((items, table, None, bias), {}, "bias needs weight"),
        ((items, table), {"padding_idx": 7}, r"padding_idx must be in -7 \.\. 6"),
        ((items, table), {"padding_idx": -8}, r"padding_idx must be in -7 \.\. 6"),
        ((items, table), {"dropout": 1.0}, "rate must be at least 0"),
        ((items, table), {"dropout": 0.1, "seed": torch.tensor([1, 2])}, "seed must have 1 elements"),
    ]:
        with pytest.raises(ValueError, match=message):
            embedding(*args, **kw)
    for args, message in [
        ((items.int(), table), r"items is torch\.int32"),
        ((items, table, weight.float()), r"weight is torch\.float32"),
        ((items, table.long()), "table must be one of float16, bfloat16, float32, float64"),
    ]:
        with pytest.raises(TypeError, match=message):
            embedding(*args)
    for wrong in (7, -1):
        message = rf"items\[1\] is {wrong}, out of range for a table of 7 rows"
        with pytest.raises(RuntimeError, match=message):
            embedding(torch.tensor([0, wrong]), table, weight, bias)
    (d_table,) = torch.autograd.grad(embedding(items, table).sum(), table, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(d_table.sum(), table)
