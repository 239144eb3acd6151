"""Catalogues and queries for the tests of the search, and the search by brute force."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Catalogue:
    """A table of items with queries and restrictions."""

    weight: Tensor
    queries: Tensor
    bias: Tensor | None = None
    excluded: tuple[Tensor, Tensor] | None = None
    allowed: Tensor | None = None


def brute_force(case: Catalogue, k: int) -> tuple[Tensor, Tensor]:
    """Sorts the scores of all items: float64 sums rounded to float32, ties by item id."""
    scores = case.queries.double() @ case.weight.double().T
    if case.bias is not None:
        scores = scores + case.bias.double()
    scores = scores.float() + 0.0
    scores[:, 0] = -torch.inf
    if case.allowed is not None:
        scores[:, ~case.allowed] = -torch.inf
    if case.excluded is not None:
        items, offsets = case.excluded
        for row, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            scores[row, items[begin:end]] = -torch.inf
    ordered = scores.sort(dim=1, descending=True, stable=True)
    values, items = ordered.values[:, :k], ordered.indices[:, :k]
    missing = max(0, k - case.weight.shape[0])
    values = torch.nn.functional.pad(values, (0, missing), value=-torch.inf)
    items = torch.nn.functional.pad(items, (0, missing))
    return items.masked_fill(values == -torch.inf, 0), values


def random_case(n: int, dim: int, size: int = 3, *, bias: bool = False) -> Catalogue:
    """Rows, queries and a bias from a normal distribution."""
    return Catalogue(torch.randn(n, dim), torch.randn(size, dim), torch.randn(n) if bias else None)


def near_ties(n: int = 3000, dim: int = 24) -> Catalogue:
    """Rows that differ by much less than a step of int8, in an order that rounding to int8 loses."""
    row = torch.rand(dim) + 0.5
    weight = row * (1 + 1e-6 * torch.randn(n, 1)) + 1e-5 * torch.randn(n, dim)
    return Catalogue(weight, torch.rand(4, dim) + 0.5)


def spread_norms(n: int = 2500, dim: int = 17) -> Catalogue:
    """Rows and queries whose norms span twenty powers of ten, and zero rows and queries."""
    weight = torch.randn(n, dim) * 10 ** (20 * torch.rand(n, 1) - 10)
    weight[torch.randperm(n)[: n // 5]] = 0
    queries = torch.randn(5, dim) * 10 ** torch.tensor([[-10.0], [-3], [0], [10], [0]])
    queries[4] = 0
    return Catalogue(weight, queries, 10 ** (12 * torch.rand(n) - 6))


def integers(n: int = 2000, dim: int = 9) -> Catalogue:
    """Small whole numbers: very many equal scores and equal rows."""
    weight, queries = torch.randint(-2, 3, (n, dim)).float(), torch.randint(-2, 3, (6, dim)).float()
    return Catalogue(weight, queries, torch.randint(-1, 2, (n,)).float())


def rounded_ties(n: int = 2000, dim: int = 9) -> Catalogue:
    """Scores that differ by too little for float32: they are equal, whatever their order in float64."""
    case = integers(n, dim)
    case.weight[:, -1] = 1e-9 * torch.randn(n)
    case.queries[:, -1] = 1
    return case


def equal_rows(n: int = 1500, dim: int = 8) -> Catalogue:
    """One row many times, and negative scores for half of the queries."""
    query = torch.randn(dim)
    return Catalogue(torch.randn(dim).expand(n, dim).contiguous(), torch.stack([query, -query]))


def restricted(n: int = 1700, dim: int = 20, size: int = 6) -> Catalogue:
    """A share of the items is allowed; each query excludes its best items and others, or all, or none."""
    case = random_case(n, dim, size, bias=True)
    case.allowed = torch.rand(n) < 0.7
    best = brute_force(case, 40)[0]
    excluded = [torch.cat([best[row, ::2], torch.randint(n, (50,))]) for row in range(size - 2)]
    excluded += [torch.arange(n), torch.zeros(0, dtype=torch.int64)]
    offsets = torch.tensor([0, *(len(items) for items in excluded)]).cumsum(0)
    case.excluded = torch.cat(excluded), offsets
    return case


CASES = {
    "near_ties": near_ties,
    "spread_norms": spread_norms,
    "integers": integers,
    "rounded_ties": rounded_ties,
    "equal_rows": equal_rows,
    "restricted": restricted,
}
