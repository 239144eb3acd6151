"""The search in plain PyTorch, for devices without a kernel.

A matrix product gives upper bounds of all scores, block by block; the items with the largest bounds are
scored exactly. If the smallest of their bounds is below the k-th exact score, no other item can be among the
best. Otherwise, as with very many equal scores, `top_keys` computes every score exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recgrela.retrieval.reference import (
    MISSING,
    best_of,
    exact_scores,
    hidden_places,
    items_and_scores,
    keys_of,
    max_numbers_of,
    pairs_of,
    top_keys,
)

# Bound on the error of a score, as a multiple of |query| |row|: products of float32 matrices may run in
# bfloat16, whose rounding of two operands is an error of up to 2^-7. Sums add little, whatever their order.
PRODUCT_ERROR = 2.0**-6
# Bound on the rounding of the sum of a product and a bias, as a multiple of the bias, and on the rounding of
# a score to float32.
ROUNDING = 2.0**-21
TINY = 2.0**-120  # more than what underflow takes from a score
MAX_QUERIES = 256  # searched at a time


def candidates_for(k: int) -> int:
    """The number of items whose exact scores are computed."""
    return 4 * k + 64


def search(
    queries: Tensor,
    weight: Tensor,
    norms: Tensor,
    bias: Tensor | None,
    k: int,
    excluded: tuple[Tensor, Tensor] | None,
    allowed: Tensor | None,
    max_numbers: int | None = None,
) -> Tensor:
    """The keys of the best items, int64 [B, k].

    Args:
        norms: float32 [N], upper bounds of the Euclidean norms of the rows of `weight`.
        max_numbers: about the largest number of elements stored at a time.
        queries, weight, bias, k, excluded, allowed: as for `top_k_reference`.
    """
    if max_numbers is None:
        max_numbers = max_numbers_of(queries.device)
    pairs = pairs_of(excluded)
    parts = [queries.new_empty((0, k), dtype=torch.int64)]
    for start in range(0, queries.shape[0], MAX_QUERIES):
        chunk = queries[start : start + MAX_QUERIES]
        own = _select(pairs, torch.arange(start, start + len(chunk), device=queries.device), len(queries))
        keys, certain = _by_bounds(chunk, weight, norms, bias, k, own, allowed, max_numbers)
        if not certain.all():
            rows = (~certain).nonzero()[:, 0]
            rest = _select(own, rows, len(chunk))
            keys[rows] = top_keys(chunk[rows], weight, bias, k, rest, allowed, max_numbers)
        parts.append(keys)
    return torch.cat(parts)


def _select(pairs: tuple[Tensor, Tensor] | None, rows: Tensor, size: int) -> tuple[Tensor, Tensor] | None:
    """The pairs (query, item) of some of `size` queries, which are numbered anew."""
    if pairs is None:
        return None
    query, item = pairs
    renumbered = query.new_full((size,), -1)
    renumbered[rows] = torch.arange(len(rows), device=rows.device)
    query = renumbered[query]
    return query[query >= 0], item[query >= 0]


def _by_bounds(
    queries: Tensor,
    weight: Tensor,
    norms: Tensor,
    bias: Tensor | None,
    k: int,
    pairs: tuple[Tensor, Tensor] | None,
    allowed: Tensor | None,
    max_numbers: int,
) -> tuple[Tensor, Tensor]:
    """Keys [B, k], and whether they are certainly those of the best items, bool [B]."""
    size, n_items, width = queries.shape[0], *weight.shape
    errors = torch.linalg.vector_norm(queries.double(), dim=1).float() * PRODUCT_ERROR
    count = min(candidates_for(k), n_items)
    bounds = queries.new_full((size, count), -torch.inf)
    items = torch.zeros_like(bounds, dtype=torch.int64)
    block = max(1, max_numbers // max(1, size))
    for start in range(0, n_items, block):
        stop = min(start + block, n_items)
        upper = queries @ weight[start:stop].T
        upper.addr_(errors, norms[start:stop])
        if bias is not None:
            b = bias[start:stop]
            upper += b + b.abs() * ROUNDING
        upper.masked_fill_(hidden_places(size, start, stop, pairs, allowed, queries), -torch.inf)
        largest, places = upper.topk(min(count, stop - start))
        bounds, chosen = torch.cat([bounds, largest], 1).topk(count)
        items = torch.cat([items, places + start], 1).gather(1, chosen)
    keys = []
    step = max(1, max_numbers // (2 * count * width))
    for start in range(0, size, step):
        own = items[start : start + step]
        scores = exact_scores(
            queries[start : start + step, None], weight[own], None if bias is None else bias[own]
        )
        keys.append(keys_of(scores, own).masked_fill(bounds[start : start + step] == -torch.inf, MISSING))
    found = torch.cat(keys) if keys else items
    best = best_of(found, k)
    last = items_and_scores(best[:, -1])[1]
    lowest = bounds[:, -1]
    certain = (lowest == -torch.inf) | (lowest < last - last.abs() * ROUNDING - TINY)
    return best, certain if count < n_items else torch.ones_like(certain)
