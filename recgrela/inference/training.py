"""Training from Python, in a run folder as the command makes it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recgrela.data import load_table
from recgrela.data.formats.table import wanted_columns
from recgrela.inference.arguments import to_events
from recgrela.models import CONFIGS
from recgrela.settings.command_line import to_argv
from recgrela.settings.data import DataConfig, without_split
from recgrela.settings.run import read_run
from recgrela.system.arrow import plain
from recgrela.system.errors import RunError
from recgrela.system.files import atomic_write, expand_path
from recgrela.training.trainer import train


def fit_run(events: Any, settings: Mapping[str, Any]) -> Path:
    """Trains a model and returns its run folder; see `Recommender.fit`."""
    argv = to_argv(settings)
    config = read_run(argv, CONFIGS)
    path = to_events(events)
    if isinstance(path, pa.Table):
        output = expand_path(config.train.output, "train.output")
        path = str(store_events(path, config.data, output))
    result = train(read_run([*argv, *to_argv({"data.path": path})], CONFIGS))
    if result.signum is not None:
        raise RunError(
            f"training was stopped; resume with python -m recgrela.train --resume {result.folder.path}"
        )
    return result.folder.path


def store_events(table: pa.Table, config: DataConfig, folder: Path) -> Path:
    """Writes a table of events as a Parquet file named by their hash, and returns its path.

    The hash includes the names and types of the columns: the same events may come with others.
    """
    sha256 = load_table(table, without_split(config)).sha256
    columns = pa.table({name: plain(table[name]) for name in wanted_columns(config)})
    digest = hashlib.sha256(f"{sha256}\n{columns.schema}".encode()).hexdigest()
    path = folder / f"events-{digest[:16]}.parquet"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda temporary: pq.write_table(columns, temporary))
    return path
