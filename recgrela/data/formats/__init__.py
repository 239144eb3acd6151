"""Readers of file formats: a path -> Events. The file name decides the format unless a setting names it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from recgrela.data.events import Events
from recgrela.data.formats import json_lines, movielens, recbole, sequences, table
from recgrela.data.formats.columns import Arrays, NoEvents
from recgrela.data.formats.files import DataFile, Finder
from recgrela.data.formats.joining import join
from recgrela.data.formats.rules import keep_valid
from recgrela.data.formats.source import Source
from recgrela.data.formats.unpacking import SETTING, Limit
from recgrela.data.packed import is_packed
from recgrela.settings.data import DataConfig
from recgrela.system.errors import DataError
from recgrela.system.text import listed

# (content of the file, its source, its name in the source, settings) -> (events, titles by original item id)
Reader = Callable[[pa.Buffer, Source, str, DataConfig], tuple[Arrays, dict[str, str]]]


@dataclass(frozen=True)
class FileFormat:
    """A reader, and patterns of the file names that it reads if no setting names a format.

    Attributes:
        read: the reader.
        patterns: patterns of file names.
        vague: patterns of names that other files have too, which are read unless others in the folder match.
    """

    read: Reader
    patterns: tuple[str, ...]
    vague: tuple[str, ...] = ()


FORMATS = {  # the first format with a matching pattern is used
    "recbole": FileFormat(recbole.read, ("*.inter",)),
    "movielens": FileFormat(movielens.read, tuple(movielens.FILES)),
    "parquet": FileFormat(table.read_parquet, ("*.parquet",)),
    "arrow": FileFormat(table.read_arrow, ("*.arrow", "*.arrows", "*.feather", "*.ipc")),
    "csv": FileFormat(table.read_csv, ("*.csv", "*.tsv"), ("*.txt", "*.dat")),
    "json": FileFormat(json_lines.read, ("*.jsonl", "*.ndjson"), ("*.json",)),
    "sequences": FileFormat(sequences.read, ()),
}
WHOLE = ("recbole", "movielens")  # formats of a file that is a whole set, with other files beside it


def read(config: DataConfig) -> Events:
    """Read the events at ``config.path``; files that are parts of one set are read as one.

    Raises:
        DataError: a file is missing or invalid; the message names it, and the line and column if there is
            one. Or parts differ in their columns or kind of times.
    """
    return join(list(read_parts(config)))


def read_parts(config: DataConfig) -> Iterator[Events]:
    """Read the files at ``config.path`` one by one, in the order of the whole. Raises as `read`.

    Files without events are left out, unless none has any.
    """
    first: Events | None = None
    files = find_files(config)
    for file in files:
        try:
            part = _read_file(file, config)
        except NoEvents:
            if first is None and file is files[-1]:
                raise
            continue
        first = first or part
        if set(part.names) != set(first.names):
            raise DataError(
                f"{part.source}: has the columns {listed(part.names)}, but {first.source} has "
                f"{listed(first.names)}; parts of one set must have the same columns"
            )
        yield part


def find_files(config: DataConfig) -> list[DataFile]:
    """The files at ``config.path``, in the order of the whole. Raises DataError; see `Finder.find`."""
    for path in config.paths:
        if is_packed(path):
            fix = "give the files that it was packed from"
            raise DataError(f"{path}: is packed, so it is a whole set and no part or file of a split; {fix}")
    limit = Limit.of_memory(config.max_unpacked_gb, SETTING)
    patterns = {name: known.patterns for name, known in FORMATS.items()}
    vague = {name: known.vague for name, known in FORMATS.items()}
    return Finder(patterns, vague, WHOLE, config.format, limit).find(config.paths)


def _read_file(file: DataFile, config: DataConfig) -> Events:
    data = file.source.read(file.name)
    arrays, titles = FORMATS[file.format].read(data, file.source, file.name, config)
    digest = hashlib.sha256(data).hexdigest()
    return to_events(arrays, config, file.label, digest, file.format, titles)


def to_events(
    arrays: Arrays, config: DataConfig, label: str, sha256: str, kind: str, titles: dict[str, str]
) -> Events:
    """The events of a file or table by the rules for single events (`keep_valid`)."""
    kept = keep_valid(arrays, config)
    users, items, times, user_tokens, item_tokens, _, ticks, names = kept.arrays
    return Events(
        users,
        items,
        times,
        user_tokens,
        item_tokens,
        sha256,
        label,
        kind,
        titles,
        ticks=ticks,
        dropped=kept.dropped,
        unusual=kept.unusual,
        names=names,
    )
