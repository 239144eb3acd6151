from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.retrieval.cases import CASES, Catalogue, brute_force, near_ties, random_case, restricted
from python_tests.support.defaults import check_every_default
from recgrela.retrieval import ItemIndex, composition, top_k_reference
from recgrela.retrieval.reference import items_and_scores, keys_of
from recgrela.system.errors import RunError

each_precision = pytest.mark.parametrize("precision", ["float32", "int8"])


def found(case: Catalogue, k: int, precision: str = "float32") -> tuple[Tensor, Tensor]:
    index = ItemIndex(case.weight, case.bias, precision)
    return index.search(case.queries, k, case.excluded, case.allowed)


def assert_equal(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert [x.dtype for x in got] == [torch.int64, torch.float32]
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@each_precision
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("k", [1, 10, 333])
def test_the_search_equals_brute_force(name: str, k: int, precision: str) -> None:
    case = CASES[name]()
    assert_equal(found(case, k, precision), brute_force(case, k))


@each_precision
def test_the_search_does_not_depend_on_defaults(precision: str) -> None:
    case = random_case(300, 16)
    check_every_default(lambda: dict(zip(("items", "scores"), found(case, 5, precision), strict=True)))


@each_precision
@pytest.mark.parametrize("n, dim", [(1, 3), (2, 1), (31, 7), (33, 16), (64, 64), (1023, 65), (4097, 256)])
def test_any_sizes(n: int, dim: int, precision: str) -> None:
    for size in (0, 1, 2, 19):
        case = random_case(n, dim, size, bias=size % 2 == 1)
        for k in (1, 7, n, n + 5):
            assert_equal(found(case, k, precision), brute_force(case, k))


@each_precision
def test_all_items_excluded_or_not_allowed(precision: str) -> None:
    case = random_case(70, 8)
    for case.allowed, case.excluded in (
        (torch.zeros(70, dtype=torch.bool), None),
        (None, (torch.arange(70).repeat(3), torch.tensor([0, 70, 140, 210], dtype=torch.int32))),
    ):
        items, scores = found(case, 4, precision)
        assert not items.any() and (scores == -torch.inf).all()


def test_rounding_to_int8_alone_loses_items() -> None:
    case = near_ties()
    step = case.weight.abs().amax(1, keepdim=True) / 127
    rounded = Catalogue((case.weight / step).round() * step, case.queries)
    expected = brute_force(case, 10)[0]
    recall = torch.isin(brute_force(rounded, 10)[0], expected).float().mean()
    assert recall < 0.5
    assert torch.equal(found(case, 10, "int8")[0], expected)


@pytest.mark.parametrize("name", CASES)
def test_the_definition_equals_brute_force(name: str) -> None:
    case = CASES[name]()
    for max_numbers in (1, 1 << 12, 1 << 22):
        if max_numbers == 1:  # one item at a time
            case.weight = case.weight[:200]
            case.bias = None if case.bias is None else case.bias[:200]
            case.allowed = None if case.allowed is None else case.allowed[:200]
            case.excluded = None
        got = top_k_reference(
            case.queries, case.weight, 12, case.bias, case.excluded, case.allowed, max_numbers=max_numbers
        )
        assert_equal(got, brute_force(case, 12))
        case = CASES[name]()


@pytest.mark.parametrize("name", CASES)
def test_the_composition_equals_brute_force(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "MAX_QUERIES", 4)
    monkeypatch.setattr(composition, "candidates_for", lambda k: k + 7)
    case = CASES[name]()
    norms = torch.linalg.vector_norm(case.weight.double(), dim=1).float() * 1.0001
    for max_numbers in (1 << 12, 1 << 22):
        args = (case.queries, case.weight, norms, case.bias, 9, case.excluded, case.allowed, max_numbers)
        assert_equal(items_and_scores(composition.search(*args)), brute_force(case, 9))


def test_the_composition_does_not_compute_every_score_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    case, norms = random_case(5000, 32), torch.full((5000,), 20.0)
    monkeypatch.delattr(composition, "top_keys")
    keys = composition.search(case.queries, case.weight, norms, None, 10, None, None)
    assert_equal(items_and_scores(keys), brute_force(case, 10))


def test_a_product_in_bfloat16_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(4000, 48)
    expected = brute_force(case, 20)
    case_in_half = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: case_in_half(a.bfloat16().float(), b.bfloat16().float())
    )
    norms = torch.linalg.vector_norm(case.weight.double(), dim=1).float() * 1.0001
    keys = composition.search(case.queries, case.weight, norms, None, 20, None, None)
    assert_equal(items_and_scores(keys), expected)


def test_the_definition_exports() -> None:
    class Search(torch.nn.Module):
        def forward(
            self, queries: Tensor, weight: Tensor, items: Tensor, offsets: Tensor, allowed: Tensor
        ) -> Any:
            return top_k_reference(queries, weight, 5, excluded=(items, offsets), allowed=allowed)

    case = restricted()
    case.bias = None
    args = (case.queries, case.weight, *case.excluded, case.allowed)
    exported = torch.export.export(Search(), args)
    assert_equal(exported.module()(*args), brute_force(case, 5))


def test_keys_order_scores_and_ids() -> None:
    scores = torch.tensor([-torch.inf, -3e38, -1.5, -1e-45, 0.0, 1e-45, 2.0, 3e38, torch.inf])
    keys = keys_of(scores[:, None], torch.tensor([2**31 - 2, 7, 1])).flatten()
    assert (keys.diff() > 0).all()
    items, values = items_and_scores(keys)
    assert torch.equal(values, scores.repeat_interleave(3))
    assert items.tolist() == [2**31 - 2, 7, 1] * 9


@each_precision
def test_half_precision_is_converted_exactly(precision: str) -> None:
    case = random_case(300, 12, bias=True)
    case = Catalogue(case.weight.bfloat16(), case.queries.half(), case.bias.bfloat16())
    assert_equal(found(case, 8, precision), brute_force(case, 8))


@each_precision
def test_any_strides(precision: str) -> None:
    case = random_case(300, 24)
    strided = Catalogue(case.weight.T.contiguous().T, case.queries.T.contiguous().T)
    assert_equal(found(strided, 8, precision), brute_force(case, 8))


@each_precision
def test_a_changed_table_is_an_error(precision: str) -> None:
    for half in (False, True):
        weight = torch.nn.Parameter(torch.randn(50, 4, dtype=torch.bfloat16 if half else torch.float32))
        bias = torch.zeros(50)
        index = ItemIndex(weight, bias, precision)
        index.search(torch.randn(1, 4), 1)
        with torch.no_grad():
            (weight if half else bias).add_(1)
        with pytest.raises(RunError, match="has changed since the index was built"):
            index.search(torch.randn(1, 4), 1)


def test_queries_with_gradients_and_inference_tensors() -> None:
    with torch.inference_mode():
        weight = torch.randn(50, 4)
        index = ItemIndex(weight)
        inside = index.search(weight[3:4], 2)
    assert_equal(index.search(weight[3:4].clone().requires_grad_(), 2), inside)


@each_precision
def test_bad_tables(precision: str) -> None:
    good = torch.randn(9, 4)
    for weight, bias, error, text in (
        (good[0], None, ValueError, r"weight must be \[N, D\]"),
        (good[:0], None, ValueError, r"weight must be \[N, D\] with 1"),
        (good[:, :0], None, ValueError, r"1 .. 65536 elements"),
        (good.double(), None, TypeError, "weight must be float32, float16 or bfloat16, got torch.float64"),
        (good, torch.zeros(8), ValueError, r"bias must be \[9\], got shape \(8,\)"),
        (good, torch.zeros(9, dtype=torch.int64), TypeError, "bias must be float32"),
        (good, torch.zeros(9, device="meta"), ValueError, "bias is on meta"),
        (good.clone().index_fill_(0, torch.tensor(3), torch.nan), None, ValueError, "row 3 is the first"),
        (
            good.clone().index_fill_(0, torch.tensor(3), -torch.inf),
            None,
            ValueError,
            "row 3 has the magnitude inf",
        ),
        (good * 1e31, None, ValueError, "too large"),
        (good, torch.full((9,), -torch.inf), ValueError, "bias has NaN, infinite"),
    ):
        with pytest.raises(error, match=text):
            ItemIndex(weight, bias, precision)
    with pytest.raises(ValueError, match="precision must be one of float32, int8, got 'int4'"):
        ItemIndex(good, precision="int4")


@each_precision
def test_bad_searches(precision: str) -> None:
    index, good = ItemIndex(torch.randn(9, 4), precision=precision), torch.randn(2, 4)
    nan = good.clone()
    nan[1, 2] = torch.nan
    items, offsets = torch.tensor([3, 1]), torch.tensor([0, 1, 2])
    for args, error, text in (
        ((good[0], 1), ValueError, r"queries must be \[B, 4\]"),
        ((good[:, :3], 1), ValueError, r"queries must be \[B, 4\], got shape \(2, 3\)"),
        ((good.double(), 1), TypeError, "queries must be float32"),
        ((good.to("meta"), 1), ValueError, "queries are on meta"),
        ((nan, 1), ValueError, "row 1 is the first"),
        ((good / 0, 1), ValueError, "infinite"),
        ((good * 1e30, 1), ValueError, "too large"),
        ((good, 0), ValueError, "k must be an integer of at least 1, got 0"),
        ((good, True), ValueError, "k must be an integer"),
        ((good, 1.0), ValueError, "k must be an integer"),
        ((good, 1, (items.int(), offsets)), TypeError, "excluded items must be int64"),
        ((good, 1, (items, offsets[:2])), ValueError, r"cu_excluded must be \[3\]"),
        ((good, 1, (items, offsets.float())), TypeError, "cu_excluded must be int32 or int64"),
        (
            (good, 1, (items, torch.tensor([0, 3, 2]))),
            ValueError,
            "cu_excluded must start at 0, not decrease",
        ),
        ((good, 1, (items, torch.tensor([0, 1, 1]))), ValueError, "end at 2"),
        ((good, 1, (items + 6, offsets)), ValueError, r"within 0 .. 8, got 7 .. 9"),
        ((good, 1, (-items, offsets)), ValueError, r"within 0 .. 8, got -3 .. -1"),
        ((good, 1, None, torch.ones(8, dtype=torch.bool)), ValueError, r"allowed must be \[9\]"),
        ((good, 1, None, torch.ones(9)), TypeError, "allowed must be bool"),
        (
            (good, 1, None, torch.ones(9, dtype=torch.bool, device="meta")),
            ValueError,
            "allowed must be on cpu",
        ),
    ):
        with pytest.raises(error, match=text):
            index.search(*args)
