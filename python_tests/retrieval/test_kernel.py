"""The CPU kernel of the search, with each instruction set and number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from python_tests.retrieval.cases import CASES, Catalogue, brute_force, near_ties, random_case, restricted
from recgrela.retrieval import ItemIndex
from recgrela.retrieval.kernel import BLOCK, Table, float32_table, int8_table, search

pytestmark = pytest.mark.usefixtures("poisoned_memory")
PRECISIONS = ("float32", "int8")
each_precision = pytest.mark.parametrize("precision", PRECISIONS)


@pytest.fixture(params=[1, 2, 7])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def table_of(case: Catalogue, precision: str) -> Table:
    norms = torch.linalg.vector_norm(case.weight.double(), dim=1).float() * (1 + 2.0**-20)
    if precision == "float32":
        return float32_table(norms, case.bias)
    return int8_table(case.weight, norms, case.bias)


def operands(case: Catalogue, precision: str, k: int = 5) -> list[object]:
    """The arguments of torch.ops.recgrela.top_k."""
    table = table_of(case, precision)
    excluded = case.excluded or (None, None)
    own = (table.bounds, table.codes, table.scales, table.biases, table.order)
    return [case.queries, case.weight, case.bias, *own, k, *excluded, case.allowed]


def check(case: Catalogue, k: int, precision: str) -> None:
    index = ItemIndex(case.weight, case.bias, precision)
    items, scores = index.search(case.queries, k, case.excluded, case.allowed)
    expected = brute_force(case, k)
    assert torch.equal(items, expected[0]) and torch.equal(scores, expected[1])


@each_precision
@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set(name: str, precision: str, isa: str) -> None:
    check(CASES[name](), 50, precision)


@each_precision
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 130])
def test_every_instruction_set_at_odd_widths(dim: int, precision: str, isa: str) -> None:
    for n in (2, 32, 97):
        check(random_case(n, dim, bias=True), 4, precision)


@each_precision
def test_extreme_int8_rows_do_not_overflow(precision: str, isa: str) -> None:
    signs = torch.randint(0, 2, (400, 256)) * 2.0 - 1
    check(Catalogue(torch.cat([signs, torch.ones(3, 256), -torch.ones(3, 256)]), signs[:5]), 9, precision)


@each_precision
@pytest.mark.parametrize("size", [1, 17, 40])
def test_any_number_of_threads(size: int, precision: str, threads: int) -> None:
    check(restricted(size=max(3, size)), 30, precision)
    check(random_case(3000, 12, size), 700, precision)


def test_int8_reads_few_rows() -> None:
    case = random_case(20_000, 64, 1)
    k_th = brute_force(case, 100)[1][0, -1]
    far = (case.weight @ case.queries[0]) < 0.6 * k_th
    assert far.float().mean() > 0.9
    table = table_of(case, "int8")
    case.weight[far] = torch.nan  # a NaN score would be the highest
    items, scores = search(case.queries, case.weight, None, table, 100, None, None)
    assert torch.equal(items, brute_force(replace(case, weight=case.weight.nan_to_num(0)), 100)[0])
    assert not scores.isnan().any()


def test_without_its_bounds_int8_loses_items() -> None:
    case = near_ties()
    table, expected = table_of(case, "int8"), brute_force(case, 10)
    args = (10, None, None)
    assert torch.equal(search(case.queries, case.weight, None, table, *args)[0], expected[0])
    table.bounds[:, :2] = 0
    assert not torch.equal(search(case.queries, case.weight, None, table, *args)[0], expected[0])


@pytest.mark.parametrize("dim", [6, 64])
def test_the_table_bounds_the_errors_of_its_rows(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recgrela.retrieval.kernel.max_numbers_of", lambda device: 64 * BLOCK)
    case = random_case(333, dim, bias=True)
    case.weight[7], case.weight[8] = 0, 1e-40
    table, order = table_of(case, "int8"), None
    assert table.codes is not None and table.order is not None and table.scales is not None
    order = table.order[:333].long()
    assert torch.equal(order.sort().values, torch.arange(333)) and not table.order[333:].any()
    assert torch.equal(table.biases[:333], case.bias[order])
    q = table.codes.transpose(1, 2).reshape(-1, dim + -dim % 4)
    assert not q[:, dim:].any() and not q[333:].any()
    q, scale, rows = q[:333, :dim].double(), table.scales[:333].double(), case.weight[order].double()
    bounds = table.bounds[torch.arange(333) // BLOCK].double()
    error = torch.linalg.vector_norm(rows - scale[:, None] * q, dim=1)
    assert (error <= scale * bounds[:, 0]).all()
    assert (torch.linalg.vector_norm(q, dim=1) <= bounds[:, 1]).all()
    assert (torch.linalg.vector_norm(rows, dim=1) <= bounds[:, 2]).all()
    assert (case.bias[order].abs() <= bounds[:, 3]).all()


@each_precision
def test_opcheck(precision: str) -> None:
    tests = ("test_schema", "test_faketensor")
    for case in (restricted(200), random_case(40, 8)):
        torch.library.opcheck(torch.ops.recgrela.top_k.default, operands(case, precision), test_utils=tests)


def test_the_operator_checks_its_operands() -> None:
    names = ["queries", "weight", "bias", "bounds", "codes", "scales", "biases", "order", "k", "excluded"]
    names += ["cu_excluded", "allowed"]
    case = restricted(100)
    good = operands(case, "int8")
    torch.ops.recgrela.top_k(*good)

    def first(x: Tensor) -> Tensor:
        return x[:-1]

    for name, change, text in (
        ("queries", lambda x: x.double(), "queries must have the shape"),
        ("queries", lambda x: x[:, :-1], "queries must have the shape"),
        ("weight", lambda x: x[:0], "weight .N, D. must have 1"),
        ("bias", first, "bias must have the shape"),
        ("bounds", first, "bounds must have the shape"),
        ("codes", first, "codes must have the shape"),
        ("codes", lambda x: None, "codes, scales and order go together"),
        ("scales", first, "scales must have the shape"),
        ("biases", lambda x: None, "with a bias also biases"),
        ("order", lambda x: x.long(), "order must have the shape"),
        ("k", lambda x: 0, "k must be at least 1"),
        ("excluded", lambda x: None, "excluded and cu_excluded go together"),
        ("cu_excluded", first, r"cu_excluded must be \[B \+ 1\]"),
        ("cu_excluded", lambda x: x + 1, "must start at 0 and end at"),
        ("allowed", first, "allowed must have the shape"),
    ):
        bad = list(good)
        bad[names.index(name)] = change(bad[names.index(name)])
        with pytest.raises(RuntimeError, match=text):
            torch.ops.recgrela.top_k(*bad)
    unordered = list(good)
    unordered[names.index("order")] = torch.full_like(good[names.index("order")], 10**6)
    items, scores = torch.ops.recgrela.top_k(*unordered)  # ids out of range are no items
    assert not items.any() and (scores == -torch.inf).all()
