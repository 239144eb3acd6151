"""Readers of file formats: a path -> Events. The file name decides the format unless a setting names it."""

from __future__ import annotations

import fnmatch
import hashlib
import posixpath
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from recgrela.data.events import Events
from recgrela.data.formats import json_lines, movielens, recbole, sequences, table
from recgrela.data.formats.columns import Arrays
from recgrela.data.formats.source import Source, open_source
from recgrela.data.formats.unpacking import SETTING, Limit
from recgrela.settings.data import DataConfig
from recgrela.system.errors import DataError
from recgrela.system.text import listed

# (content of the file, its source, its name in the source, settings) -> (events, titles by original item id)
Reader = Callable[[pa.Buffer, Source, str, DataConfig], tuple[Arrays, dict[str, str]]]


@dataclass(frozen=True)
class FileFormat:
    """A reader, and patterns of the file names that it reads if no setting names a format."""

    read: Reader
    patterns: tuple[str, ...]

    def matches(self, name: str) -> bool:
        base = posixpath.basename(name).lower().removesuffix(".gz")
        return any(fnmatch.fnmatchcase(base, pattern) for pattern in self.patterns)


FORMATS = {  # the first format with a matching pattern is used
    "recbole": FileFormat(recbole.read, ("*.inter",)),
    "movielens": FileFormat(movielens.read, tuple(movielens.FILES)),
    "parquet": FileFormat(table.read_parquet, ("*.parquet",)),
    "csv": FileFormat(table.read_csv, ("*.csv", "*.tsv", "*.txt", "*.dat")),
    "json": FileFormat(json_lines.read, ("*.jsonl", "*.ndjson", "*.json")),
    "sequences": FileFormat(sequences.read, ()),
}


def read(config: DataConfig) -> Events:
    """Read the events at ``config.path``: a file, or a folder or zip with exactly one readable file.

    Raises:
        DataError: the file is missing or invalid; the message names it, and the line and column if there is
            one.
    """
    source, name = open_source(config.path, Limit.of_memory(config.max_unpacked_gb, SETTING))
    if name is None:
        name, kind = _choose(source, config.format)
    elif config.format == "auto":
        kind = next((kind for kind, known in FORMATS.items() if known.matches(name)), "")
        if not kind:
            raise DataError(f"{config.path}: unknown format; {_known()}; or set data.format")
    else:
        kind = config.format
    data = source.read(name)
    arrays, titles = FORMATS[kind].read(data, source, name, config)
    digest = hashlib.sha256(data).hexdigest()
    return Events(*arrays, sha256=digest, source=source.label(name), format=kind, titles=titles)


def _choose(source: Source, wanted: str) -> tuple[str, str]:
    """The file of a folder or zip to read, and its format."""
    names = source.names()
    for kind in FORMATS if wanted == "auto" else (wanted,):
        found = [name for name in names if FORMATS[kind].matches(name)]
        if len(found) > 1:
            fix = "extract it and give the path of one" if source.is_zip else "give the path of one"
            raise DataError(f"{source.path}: contains {listed(found)}; {fix}")
        if found:
            return found[0], kind
    raise DataError(f"{source.path}: contains no file of a known format; {_known()}")


def _known() -> str:
    patterns = [pattern for known in FORMATS.values() for pattern in known.patterns]
    return f"known files are {', '.join(patterns)}"
