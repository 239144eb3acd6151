"""A file with the rank of every target, from which figures of users or groups of users can be computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from recgrela.data import Interactions
from recgrela.evaluation.metrics import MISSED, Ranking
from recgrela.runs.ranks import Ranks
from recgrela.system.errors import ConfigError
from recgrela.system.files import atomic_write, file_to_write

SCHEMA = pa.schema(
    {
        "split": pa.string(),
        "user": pa.string(),
        "item": pa.string(),
        "is_new": pa.bool_(),
        "rank": pa.int32(),
        "rank_seen_removed": pa.int32(),
    }
)
SUFFIXES = (".parquet", ".csv")
_ROWS = 1 << 16  # in memory at a time


def per_user_path(text: str, option: str) -> Path:
    """The path of a file to write.

    Raises:
        ConfigError: which names the option: another kind of file, or its folder does not exist.
    """
    path = file_to_write(text, option)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{option}: {text} is not the name of a file that ends in {' or '.join(SUFFIXES)}")
    return path


def write_per_user(path: Path, data: Interactions, rankings: Mapping[str, Ranking]) -> None:
    """Write a row for each target: original ids, whether the target is new to the user, and its ranks.

    A target that the user has seen has no rank with the seen items removed (null).

    Args:
        path: a path of `per_user_path`; its suffix decides the format.
        data: the data, with the original ids.
        rankings: the ranking of each split.

    Raises:
        RunError: the file cannot be written; an earlier file of the name is unchanged.
    """

    def write(temporary: Path) -> None:
        if path.suffix == ".csv":
            with pacsv.CSVWriter(temporary, SCHEMA) as writer:
                for batch in _batches(data, rankings):
                    writer.write(batch)
        else:
            with pq.ParquetWriter(temporary, SCHEMA) as writer:
                for batch in _batches(data, rankings):
                    writer.write_batch(batch)

    atomic_write(path, write)


def _batches(data: Interactions, rankings: Mapping[str, Ranking]) -> Iterator[pa.RecordBatch]:
    for split, ranking in rankings.items():
        ranks = Ranks.of(ranking)
        for first in range(0, len(ranks.users), _ROWS):
            users, items, unmasked, masked = (x[first : first + _ROWS] for x in vars(ranks).values())
            is_seen = masked == MISSED
            columns = [
                pa.array([split] * len(users), pa.string()),
                pa.array([data.user_ids[row] for row in users.tolist()], pa.string()),
                pa.array([data.item_ids[item] for item in items.tolist()], pa.string()),
                pa.array(~is_seen),
                pa.array(unmasked),
                pa.array(masked, mask=is_seen),
            ]
            yield pa.record_batch(columns, schema=SCHEMA)
