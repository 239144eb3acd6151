"""Loads the data of a configuration."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from recgrela.data import synthetic
from recgrela.data.events import Events
from recgrela.data.formats import read, to_events
from recgrela.data.formats.table import table_arrays
from recgrela.data.held_out import held_out_files, join_files
from recgrela.data.interactions import Interactions
from recgrela.data.packed import PackedInteractions, is_packed, open_packed
from recgrela.data.packing import write_packed
from recgrela.data.prepare import filter_settings, prepare, split_settings
from recgrela.data.reading import rule_settings
from recgrela.data.split import TRAIN
from recgrela.parallel.processes import Processes
from recgrela.settings.data import DataConfig
from recgrela.settings.fields import show
from recgrela.system.arrow import to_table
from recgrela.system.errors import ConfigError, DataError
from recgrela.system.out_of_memory import MemoryPhase

TABLE = "the table of events"  # its name in messages
_temporary: set[Path] = set()  # folders of `pack_for_host`


READING = MemoryPhase(
    "reading the data",
    "give fewer events (data.path, or data.synthetic_users and data.synthetic_events), or more memory",
)


@READING
def load(config: DataConfig) -> Interactions:
    """Read, filter, sort, split and pack the data of a run; or map packed data and check them.

    Returns:
        Interactions on the CPU.

    Raises:
        DataError: the file is missing or invalid, or no events are left after filtering; the message names
            the file, and the line and column if there is one. Or packed data have another filter or order.
    """
    if config.path == "synthetic":
        events = synthetic_events(config)
    elif isinstance(config.path, str) and is_packed(config.path):
        data = open_packed(config.path)
        _check_prepared(data, config)
        return data
    else:
        events = read(config)
    return _prepare(events, config)


def synthetic_events(config: DataConfig) -> Events:
    """The synthetic events. Raises ConfigError for settings that need files."""
    if config.split == "files":
        raise ConfigError("data.split: files needs files; give data.path, data.valid_path and data.test_path")
    if config.min_rating is not None:
        raise ConfigError("data.min_rating: does not apply to synthetic data, which have no ratings")
    return synthetic.generate(
        config.synthetic_seed, config.synthetic_users, config.synthetic_items, config.synthetic_events
    )


def _prepare(events: Events, config: DataConfig) -> Interactions:
    """`prepare`, with the events of the files of valid and test if the split is by files."""
    joined, phases = join_files([(TRAIN, events), *held_out_files(config)])
    return prepare(joined, config, phases)


def load_shared(config: DataConfig, processes: Processes) -> Interactions:
    """Like `load`, for several processes: one process of each host reads the source.

    Data that are not packed are written to a temporary folder, which all processes of the host map.

    Raises:
        DataError: see `load`; or hosts have different data.
        ReportedElsewhere: another process raises the error.
    """
    if processes.is_alone:
        return load(config)
    path = Path(processes.on_each_host(lambda: str(pack_for_host(config))))
    data = open_packed(path, verify=False)
    processes.wait()  # until all have opened it
    discard(path)
    hashes = processes.gather_text(data.packed_sha256() + data.description["split"].get("sha256", ""))
    if len(set(hashes)) > 1:
        other = next(rank for rank, value in enumerate(hashes) if value != hashes[0])
        raise DataError(
            f"{config.path}: differs between hosts: process 0 has events of sha256 {hashes[0][:16]}..., "
            f"process {other} of {hashes[other][:16]}...; copy the data to every host"
        )
    return data


def pack_for_host(config: DataConfig) -> Path:
    """Load the data of a run and return a packed folder, which the other processes of this host open.

    A process opens it by ``open_packed(path, verify=False)``. Data that are not packed are written to a
    temporary folder. It is removed when this process exits, or by `discard`: processes that have opened it
    keep their data, so it is best discarded as soon as all have, and nothing is left if they are killed.

    Raises:
        DataError: as `load`.
        RunError: the folder cannot be written.
    """
    data = load(config)
    if isinstance(data, PackedInteractions):
        return data.path.resolve()
    parent = Path(tempfile.mkdtemp(prefix="recgrela-"))
    _temporary.add(parent)
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    write_packed(data, parent / "data")
    return parent / "data"


def discard(path: Path) -> None:
    """Remove a folder of `pack_for_host` if it is a temporary one of this process."""
    if path.parent in _temporary:
        shutil.rmtree(path.parent, ignore_errors=True)


def _check_prepared(data: PackedInteractions, config: DataConfig) -> None:
    """Raises DataError if packed data were filtered, ordered or split by other settings."""
    description = data.description
    recorded = description["rules"] | description["filter"] | {"order": description["order"]}
    recorded |= description["split"]
    wanted = split_settings(config) | rule_settings(config)  # the split first: it decides on the others
    for name, value in (wanted | filter_settings(config) | {"order": config.order}).items():
        if recorded.get(name) != value:
            raise DataError(
                f"{config.path}: was packed with data.{name} {show(recorded.get(name))}, not {show(value)}; "
                "change the setting, or convert the source again"
            )


@READING
def load_table(table: Any, config: DataConfig) -> Interactions:
    """Filter, sort, split and pack the events of a table, whose columns the configuration names.

    Args:
        table: a table of pyarrow, pandas, polars, DuckDB or another library that `to_table` takes.
        config: columns, rules, filter, order and split.

    Returns:
        Interactions on the CPU.

    Raises:
        DataError: a column or a value is missing or invalid, or no events are left after filtering.
    """
    return _prepare(read_table(table, config), config)


def read_table(table: Any, config: DataConfig) -> Events:
    """The events of a table before filtering; see `load_table`."""
    arrays = table_arrays(to_table(table, f"{TABLE}: not a table that Arrow reads"), TABLE, config)
    digest = hashlib.sha256()
    for column in (arrays.users, arrays.items, arrays.times, arrays.ratings):
        if column is not None:
            digest.update(np.ascontiguousarray(column).data)
    for tokens in (arrays.user_tokens, arrays.item_tokens):
        digest.update("\0".join(tokens).encode())
    return to_events(arrays, config, TABLE, digest.hexdigest(), "arrow", {})
