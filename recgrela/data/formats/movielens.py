"""MovieLens as distributed: ratings.dat (1M, 10M), ratings.csv (20M and later), u.data (100K)."""

from __future__ import annotations

import posixpath
from typing import NamedTuple

import pyarrow as pa

from recgrela.data.formats.columns import Arrays, Names, find_columns
from recgrela.data.formats.layout import Layout, header_layout
from recgrela.data.formats.source import Source
from recgrela.data.formats.text import read_events, read_titles
from recgrela.settings.data import DataConfig
from recgrela.system.errors import ConfigError, DataError
from recgrela.system.text import quote


class _Release(NamedTuple):
    """Files and layouts of a MovieLens release; a layout of None is read from the file's header."""

    ratings: Layout | None
    names: Names
    rating: str
    movies_file: str
    movies: Layout | None
    title: str


_RATING = ["UserID", "MovieID", "Rating", "Timestamp"]
_MOVIE = ["MovieID", "Title", "Genres"]
_U_ITEM = ["MovieID", "Title", "Release", "Video", "URL", *(f"genre {number}" for number in range(19))]
_COLUMNS = ("user_column", "item_column", "time_column")
_FIXED = (*_COLUMNS, "rating_column", "separator", "columns", "time_format")
_NAMES = Names("UserID", "MovieID", "Timestamp")

FILES = {
    "ratings.dat": _Release(
        Layout("::", _RATING, False), _NAMES, "Rating", "movies.dat", Layout("::", _MOVIE, False), "Title"
    ),
    "u.data": _Release(
        Layout("\t", _RATING, False), _NAMES, "Rating", "u.item", Layout("|", _U_ITEM, False), "Title"
    ),
    "ratings.csv": _Release(
        None, Names("userId", "movieId", "timestamp"), "rating", "movies.csv", None, "title"
    ),
}


def read(data: pa.Buffer, source: Source, name: str, config: DataConfig) -> tuple[Arrays, dict[str, str]]:
    """Events of a ratings file, and titles from the movies file in the same folder.

    movies.dat and u.item are UTF-8 (10M) or Latin-1 (1M, 100K); a file that is not valid UTF-8 is read as
    Latin-1.
    """
    label = source.label(name)
    release = FILES.get(posixpath.basename(name).lower().removesuffix(".gz"))
    if release is None:
        raise DataError(f"{label}: not a MovieLens file; the format movielens reads {', '.join(FILES)}")
    layout = release.ratings or header_layout(data, label, ",", quoted=True)
    _refuse_columns(layout, label, release, config)
    names = release.names._replace(time=None) if config.order == "file" else release.names
    rating = None if config.min_rating is None else release.rating
    wanted = tuple(column for column in (*names, rating) if column is not None)
    find_columns(f"{label}, line 1", layout.columns, wanted)  # no setting names them
    arrays = read_events(data, label, layout, names, rating)
    movies = source.sibling(name, release.movies_file, f"{release.movies_file}.gz")
    if movies is None:
        return arrays, {}
    data, label = source.read(movies), source.label(movies)
    layout = release.movies or header_layout(data, label, ",", quoted=True)
    or_latin1 = release.movies is not None
    return arrays, read_titles(data, label, layout, release.names.item, release.title, or_latin1)


def _refuse_columns(layout: Layout, label: str, release: _Release, config: DataConfig) -> None:
    """Raises DataError or ConfigError if the configured columns are those of another format."""
    columns = [getattr(config, name) for name in _COLUMNS]
    if {*columns} <= {*layout.columns} and not {*release.names} <= {*layout.columns}:
        raise DataError(f"{label}, line 1: not a MovieLens header; set data.format=csv to read the file")
    for name in _FIXED:
        value = getattr(config, name)
        if value != getattr(DataConfig, name):
            fix = "remove the setting, or set data.format=csv"
            fixed = "the layout of MovieLens is fixed"
            raise ConfigError(f"data.{name}: {quote(value)} does not apply to {label}: {fixed}; {fix}")
