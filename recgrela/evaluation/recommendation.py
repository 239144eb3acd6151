"""Recommendations: the items with the highest scores after a history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from recgrela.models import SequenceModel


@dataclass(frozen=True)
class Recommendation:
    """A recommended item id and its score."""

    item: int
    score: float


@torch.no_grad()
def recommend(
    model: SequenceModel,
    history: Sequence[int],
    k: int = 10,
    seen: bool = False,
    max_len: int | None = None,
    retired: np.ndarray | None = None,
) -> list[Recommendation]:
    """The k items with the highest scores after a history; equal scores are ordered by item id.

    Args:
        model: a model in eval mode.
        history: item ids, oldest first; not empty.
        k: number of items; fewer are returned if the catalogue has fewer.
        seen: whether items of the history may be recommended.
        max_len: number of last items of the history that the model uses; None for `model.max_len`.
        retired: [n_items] bool, items that are not recommended; None for none.

    Returns:
        Up to k items, best first; never the padding item.
    """
    device = next(model.parameters()).device
    items = torch.tensor(history[-(max_len or model.max_len) :], dtype=torch.int64, device=device)
    cu_seqlens = torch.tensor([0, len(items)], device=device)
    scores = model.score_packed(items, cu_seqlens, len(items))[0]
    scores[0] = -torch.inf
    if retired is not None:
        scores[torch.from_numpy(retired).to(device)] = -torch.inf
    if not seen:
        scores[torch.tensor(history, device=device)] = -torch.inf
    ordered = scores.sort(descending=True, stable=True)
    pairs = zip(ordered.indices[:k].tolist(), ordered.values[:k].tolist(), strict=True)
    return [Recommendation(item, score) for item, score in pairs if score > float("-inf")]
