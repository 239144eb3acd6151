"""ranks.safetensors: each user's ranks, so that statistics over users need no second evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recgrela.system.errors import RunError
from recgrela.system.files import atomic_write


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
    arrays = {
        f"{split}/{name}": value
        for split, split_ranks in ranks.items()
        for name, value in vars(split_ranks).items()
    }
    atomic_write(path, lambda temporary: save_file(arrays, temporary))


def read_ranks(path: Path, split: str) -> Ranks:
    """The ranks of a split. Raises RunError if the file is missing or damaged."""
    if not path.is_file():
        raise RunError(f"{path}: no such file")
    try:
        arrays = load_file(path)
        ranks = Ranks(*(arrays[f"{split}/{field.name}"] for field in fields(Ranks)))
    except (OSError, SafetensorError, KeyError) as error:
        raise RunError(f"{path}: damaged: {error}") from error
    if not len(ranks.users) == len(ranks.unmasked) == len(ranks.masked) > 0:
        raise RunError(f"{path}: damaged: the numbers of users and ranks differ")
    return ranks
