"""ranks.safetensors: the rank of each target, so that statistics over users need no second evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from recgrela.evaluation.metrics import Ranking
from recgrela.runs.tensor_file import Entry, read_tensors, write_tensors
from recgrela.system.errors import RunError


@dataclass(frozen=True)
class Ranks:
    """The rank, from 1, of each target of a split.

    Attributes:
        users: [N] int64, the row of each target's user in the data; targets of a user are adjacent.
        items: [N] int32, the target items.
        unmasked: [N] int32, with all items ranked.
        masked: [N] int32, with the seen items removed; `MISSED` for a target that the user has seen.
    """

    users: np.ndarray
    items: np.ndarray
    unmasked: np.ndarray
    masked: np.ndarray

    @classmethod
    def of(cls, ranking: Ranking) -> Ranks:
        """The ranks of a ranking."""
        return cls(ranking.rows, ranking.items.numpy(), *ranking.ranks.numpy())


def write_ranks(path: Path, ranks: Mapping[str, Ranks]) -> None:
    """Write the ranks of several splits. Raises RunError if the file cannot be written."""
    entries = [
        Entry.of(f"{split}/{name}", torch.from_numpy(value))
        for split, split_ranks in ranks.items()
        for name, value in vars(split_ranks).items()
    ]
    write_tensors(path, entries, {})


def read_ranks(path: Path, split: str) -> Ranks:
    """The ranks of a split. Raises RunError if the file is missing or damaged.

    A file of an earlier version has no checksum.
    """
    content = read_tensors(path, "file of ranks")
    assert content.tensors is not None
    if content.metadata:
        raise RunError(f"{path}: damaged: its metadata is not that of a file of ranks")
    try:
        ranks = Ranks(*(content.tensors[f"{split}/{field.name}"].numpy() for field in fields(Ranks)))
    except KeyError as error:
        raise RunError(f"{path}: damaged: it has no {error}") from error
    for name, values in vars(ranks).items():
        kind = np.int64 if name == "users" else np.int32
        if values.dtype != kind or values.ndim != 1 or (len(values) and values.min() < (name != "users")):
            raise RunError(f"{path}: damaged: {split}/{name} has a wrong type, shape or value")
    if len({len(values) for values in vars(ranks).values()}) > 1 or len(ranks.users) == 0:
        raise RunError(f"{path}: damaged: the numbers of users and ranks differ")
    return ranks
