"""Readers: a path -> Events. The format goes by the file name unless the configuration names it."""

from __future__ import annotations

import hashlib
import posixpath

from recgrela.data.events import Events
from recgrela.data.formats import movielens, recbole, table
from recgrela.data.formats.source import Source, open_source
from recgrela.settings.data import DataConfig
from recgrela.system.errors import DataError

_READERS = {
    "recbole": recbole.read,
    "movielens": movielens.read,
    "parquet": table.read_parquet,
    "csv": table.read_csv,
}
_ENDINGS = {"recbole": ".inter", "parquet": ".parquet", "csv": ".csv"}


def read(config: DataConfig) -> Events:
    """Read the events at ``config.path``: a file, or a folder or zip that holds exactly one that can be read.

    Raises:
        DataError: one line that names the file, and the line and column where there is one.
    """
    source, name = open_source(config.path)
    if name is None:
        name, kind = _choose(source, config.format)
    elif config.format == "auto":
        kind = next((kind for kind in _READERS if _is(kind, name)), "")
        if not kind:
            raise DataError(f"{config.path}: unknown format; {_known()}; or name it with data.format")
    else:
        kind = config.format
    data = source.read(name)
    arrays, titles = _READERS[kind](data, source, name, config)
    digest = hashlib.sha256(data).hexdigest()
    return Events(*arrays, sha256=digest, source=source.label(name), format=kind, titles=titles)


def _is(kind: str, name: str) -> bool:
    base = posixpath.basename(name).lower().removesuffix(".gz")
    return base in movielens.FILES if kind == "movielens" else base.endswith(_ENDINGS[kind])


def _choose(source: Source, wanted: str) -> tuple[str, str]:
    """The one file of a folder or zip to read, and its format; ratings.csv is MovieLens rather than CSV."""
    names = source.names()
    for kind in _READERS if wanted == "auto" else (wanted,):
        found = [name for name in names if _is(kind, name)]
        if len(found) > 1:
            remedy = "extract it and give the path of one" if source.is_zip else "name one of them"
            raise DataError(f"{source.path}: holds {', '.join(found)}; {remedy}")
        if found:
            return found[0], kind
    raise DataError(f"{source.path}: holds no file of a known format; {_known()}")


def _known() -> str:
    return f"known are RecBole .inter, MovieLens {', '.join(movielens.FILES)}, .csv and .parquet"
