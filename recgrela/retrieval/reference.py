"""The definition of the search: exact scores, the order of items, and a search that computes every score.

A score is a sum of float64 products in a fixed order, rounded to float32. Products of float32 numbers are
exact in float64, and the order is the same in the CPU kernel, so that every implementation gives equal bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 8  # sums of a score: element d is added to sum d % LANES
LOW = (1 << 32) - 1
# Numbers of a block of scores and its temporaries.
MAX_NUMBERS = {"cpu": 1 << 22, "cuda": 1 << 26}


def max_numbers_of(device: torch.device) -> int:
    """The default bound on the numbers that a search stores at a time on a device."""
    return MAX_NUMBERS.get(device.type, MAX_NUMBERS["cpu"])


def exact_scores(queries: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    """The scores of rows [..., D] for queries [..., D], float32; shapes broadcast. -0 becomes 0."""
    total: Tensor | None = None
    for start in range(0, rows.shape[-1], LANES):
        lanes = slice(start, start + LANES)
        product = queries[..., lanes].double() * rows[..., lanes].double()
        if product.shape[-1] < LANES:
            product = F.pad(product, (0, LANES - product.shape[-1]))
        total = product if total is None else total + product
    assert total is not None
    for half in (4, 2, 1):
        total = total[..., :half] + total[..., half:]
    score = total[..., 0]
    if bias is not None:
        score = score + bias.double()
    return score.float() + 0.0


def keys_of(scores: Tensor, items: Tensor) -> Tensor:
    """int64 keys that order items: by score, equal scores by smaller id first. All keys differ."""
    bits = scores.view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as integers in the order of the scores
    return (ordered.long() << 32) + (LOW - items)


def items_and_scores(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The items and scores of keys."""
    ordered = (keys >> 32).int()
    scores = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return LOW - (keys & LOW), scores


# The key of a missing place: item 0 with score -inf, below the keys of all scores.
MISSING = int(
    keys_of(torch.tensor(-torch.inf, dtype=torch.float32, device="cpu"), torch.tensor(0, device="cpu"))
)


def pairs_of(excluded: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    """Packed items (items [S], cu_excluded [B + 1]) as pairs (query [S], item [S])."""
    if excluded is None:
        return None
    items, offsets = excluded
    places = torch.arange(items.shape[0], device=items.device)
    return torch.searchsorted(offsets.to(torch.int64), places, right=True) - 1, items


def hidden_places(
    size: int,
    start: int,
    stop: int,
    pairs: tuple[Tensor, Tensor] | None,
    allowed: Tensor | None,
    like: Tensor,
) -> Tensor:
    """bool [size or 1, stop - start]: items start .. stop - 1 that a query must not return."""
    hidden = torch.arange(start, stop, device=like.device)[None] == 0
    if allowed is not None:
        hidden = hidden | ~allowed[start:stop]
    if pairs is None:
        return hidden
    query, item = pairs
    # One more column takes the items of other blocks: the shape must not depend on the values.
    marked = torch.zeros(size, stop - start + 1, dtype=torch.bool, device=like.device)
    column = torch.where((item >= start) & (item < stop), item - start, stop - start)
    marked[query, column] = torch.ones((), dtype=torch.bool, device=like.device)
    return hidden | marked[:, :-1]


def best_of(keys: Tensor, k: int) -> Tensor:
    """The k largest of keys [B, n], descending; [B, k], filled up with `MISSING`."""
    if keys.shape[1] < k:
        # not F.pad, which takes a float64 that does not hold every key
        keys = torch.cat([keys, keys.new_full((keys.shape[0], k - keys.shape[1]), MISSING)], 1)
    return keys.topk(k).values


def top_keys(
    queries: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k: int,
    pairs: tuple[Tensor, Tensor] | None,
    allowed: Tensor | None,
    max_numbers: int,
) -> Tensor:
    """The keys of the best items [B, k], from the exact scores of all items."""
    size, n_items = queries.shape[0], weight.shape[0]
    best = torch.full((size, k), MISSING, dtype=torch.int64, device=queries.device)
    block = max(1, max_numbers // (2 * LANES * max(1, size)))
    for start in range(0, n_items, block):
        stop = min(start + block, n_items)
        scores = exact_scores(
            queries[:, None], weight[None, start:stop], None if bias is None else bias[start:stop]
        )
        keys = keys_of(scores, torch.arange(start, stop, device=queries.device))
        keys = keys.masked_fill(hidden_places(size, start, stop, pairs, allowed, queries), MISSING)
        best = best_of(torch.cat([best, keys], 1), k)
    return best


def top_k_reference(
    queries: Tensor,
    weight: Tensor,
    k: int,
    bias: Tensor | None = None,
    excluded: tuple[Tensor, Tensor] | None = None,
    allowed: Tensor | None = None,
    *,
    max_numbers: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition of `ItemIndex.search` in plain PyTorch, which computes the exact score of every item.

    Nothing depends on the values of tensors, so that `torch.export` takes it. Operands are not checked.

    Args:
        queries: float32 [B, D].
        weight: float32 [N, D]; row 0 is padding.
        k: number of items.
        bias: float32 [N] or None.
        excluded: (items int64 [S], cu_excluded [B + 1]) or None.
        allowed: bool [N] or None.
        max_numbers: about the largest number of elements stored at a time; None: `MAX_NUMBERS`.

    Returns:
        items int64 [B, k] and scores float32 [B, k], as `ItemIndex.search` does.
    """
    if max_numbers is None:
        max_numbers = max_numbers_of(queries.device)
    keys = top_keys(queries, weight, bias, k, pairs_of(excluded), allowed, max_numbers)
    return items_and_scores(keys)
