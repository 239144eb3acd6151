"""ranks.safetensors: each user's ranks, so that statistics over users need no second evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from recgrela.runs.tensor_file import Entry, read_tensors, write_tensors
from recgrela.system.errors import RunError


@dataclass(frozen=True)
class Ranks:
    """The rank, from 1, of each user's target in a split.

    Attributes:
        users: [U] int64, rows of the data.
        unmasked: [U] int32, with all items ranked.
        masked: [U] int32, with the seen items removed.
    """

    users: np.ndarray
    unmasked: np.ndarray
    masked: np.ndarray


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
    for name, kind in (("users", np.int64), ("unmasked", np.int32), ("masked", np.int32)):
        values = getattr(ranks, name)
        if values.dtype != kind or values.ndim != 1 or (len(values) and values.min() < (name != "users")):
            raise RunError(f"{path}: damaged: {split}/{name} has a wrong type, shape or value")
    if not len(ranks.users) == len(ranks.unmasked) == len(ranks.masked) > 0:
        raise RunError(f"{path}: damaged: the numbers of users and ranks differ")
    return ranks
