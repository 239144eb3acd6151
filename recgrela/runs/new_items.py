"""First rows of items that a checkpoint has no rows for, from the rows of other items."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from recgrela.data.titles import similar_titles
from recgrela.models import SequenceModel
from recgrela.models.transfer import per_item
from recgrela.retrieval.index import MAX_NORM
from recgrela.runs.items import Items
from recgrela.system.errors import DataError

NEIGHBOURS = 10  # number of similar titles whose rows make a new one
POWER = 3  # of the cosines that weight them: titles that share only frequent words count little
# Largest norm of a given vector, relative to the longest known row. Models add rows up in float32: beyond
# this ratio, the sum of both rows is the longer one, and the other items of a history have no effect.
MAX_RATIO = 1 / torch.finfo(torch.float32).eps
CHUNK = 4096  # number of new rows computed at a time

FromItems = Literal["titles", "mean"]


@torch.no_grad()
def fill_rows(model: SequenceModel, items: Items, new: np.ndarray, known: np.ndarray, how: FromItems) -> None:
    """Give new items rows in every parameter that has a row per item.

    "mean" is the mean of the rows of known items that are not retired. "titles" is the mean of the rows of
    the `NEIGHBOURS` known items, retired ones too, with the most similar titles, weighted by the cubes of
    their cosines; rows of the item table are then scaled to the median norm of the known ones, because a mean
    of rows that point apart is short.

    Args:
        model: the model.
        items: its items.
        new: [A] int64, the items to give rows.
        known: [K] int64, the items that have rows.
        how: "mean" or "titles".

    Raises:
        DataError: there is no item to take rows from, or a new item has no title or none similar to it.
    """
    if how == "mean":
        sources = known[~items.retired[known]]
        if not sources.size:
            raise DataError("no item is left whose rows a new item could have: all are retired")
        for table in per_item(model).values():
            rows = torch.from_numpy(sources).to(table.device)
            table[torch.from_numpy(new).to(table.device)] = table[rows].double().mean(0).to(table.dtype)
        return
    sources, weights = _similar(items, new, known)
    for table in per_item(model).values():
        is_vector = table.dim() == 2
        norm = _norms(table[torch.from_numpy(known).to(table.device)]).median() if is_vector else None
        for start in range(0, len(new), CHUNK):
            part = slice(start, start + CHUNK)
            rows = table[torch.from_numpy(sources[part]).to(table.device)].double()  # [a, k, D] or [a, k]
            mixed = torch.einsum("ak,ak...->a...", torch.from_numpy(weights[part]).to(rows), rows)
            if norm is not None:
                mixed *= norm / _norms(mixed)[:, None].clamp(min=torch.finfo(table.dtype).tiny)
            table[torch.from_numpy(new[part]).to(table.device)] = mixed.to(table.dtype)


@torch.no_grad()
def set_vectors(model: SequenceModel, items: Items, new: np.ndarray, known: np.ndarray, rows: Tensor) -> None:
    """Give new items the rows [A, D] of the item table, and in other parameters the mean of known items.

    Raises:
        DataError: the rows have another width, a row is not finite or longer than `MAX_RATIO` times the
            longest known one, or all known items are retired.
    """
    table = model.item_embedding.weight
    if rows.shape[1] != table.shape[1]:
        raise DataError(f"vectors of width {rows.shape[1]}, but the model has rows of width {table.shape[1]}")
    given = rows.to(table)
    norms = _norms(given)
    longest = float(_norms(table[torch.from_numpy(known).to(table.device)]).max())
    limit = min(MAX_RATIO * longest, MAX_NORM)
    if len(wrong := torch.nonzero(~(norms <= limit)).flatten()):  # a comparison with NaN is false
        row = int(wrong[0])
        raise DataError(
            f"item {items.tokens[int(new[row])]!r}: the vector has norm {float(norms[row]):.3g}, and the "
            f"longest row of the model {longest:.3g}; scale the vectors to such norms (at most {limit:.3g})"
        )
    if len(per_item(model)) > 1:
        fill_rows(model, items, new, known, "mean")
    table[torch.from_numpy(new).to(table.device)] = given


def _similar(items: Items, new: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Items [A, k] with similar titles, and their weights [A, k] of sum 1."""
    titled = np.asarray([item for item in known.tolist() if items.titles[item]], dtype=np.int64)
    if not titled.size:
        raise DataError("the items that have rows have no titles to compare with")
    wanted = []
    for item in new.tolist():
        title = items.titles[item]
        if title is None:
            raise DataError(f"item {items.tokens[item]!r} has no title")
        wanted.append(title)
    found = similar_titles(wanted, [items.titles[item] or "" for item in titled.tolist()], NEIGHBOURS)
    weights = found.cosines**POWER
    total = weights.sum(1, keepdims=True)
    if len(alone := np.flatnonzero(total == 0)):
        item = int(new[alone[0]])
        raise DataError(f"item {items.tokens[item]!r}: no title is similar to {items.titles[item]!r}")
    return titled[found.rows], weights / total


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows.double(), dim=1)
