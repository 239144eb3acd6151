"""The files that a path names: one, or the parts of one set in a folder, a zip, a pattern or a list."""

from __future__ import annotations

import fnmatch
import glob
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recgrela.data.formats.source import Source, open_source
from recgrela.data.formats.unpacking import Limit
from recgrela.system.errors import DataError
from recgrela.system.text import listed

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_ENDINGS = "uary|ruary|ch|il|e|y|ust|t|tember|ober|ember"  # of whole names
_MONTH = rf"(?<![a-z])(?:{'|'.join(_MONTHS)})(?:{_ENDINGS})?(?![a-z])"
_NUMBER = r"[0-9]+(?![0-9a-z])"  # not the size in ml-1m and ml-10m
_VARIES = re.compile(f"{_UUID}|{_MONTH}|{_NUMBER}")
_ORDERED = re.compile(f"({_MONTH}|[0-9]+)")


@dataclass(frozen=True)
class DataFile:
    """A file of events.

    Attributes:
        source: the folder or zip that contains it.
        name: its name there.
        format: the name of its format.
    """

    source: Source
    name: str
    format: str

    @property
    def label(self) -> str:
        """The file's name in messages."""
        return self.source.label(self.name)


@dataclass(frozen=True)
class Finder:
    """Finds files of some formats.

    Args:
        patterns: the patterns of file names of each format; the first format with a matching one is used.
        vague: further ones, for a file that is named itself, or a folder without a file of the others.
        whole: formats whose file is a whole set, with other files beside it.
        wanted: the only format, or "auto".
        limit: of the bytes that a file unpacks to.
    """

    patterns: Mapping[str, Sequence[str]]
    vague: Mapping[str, Sequence[str]]
    whole: Sequence[str]
    wanted: str
    limit: Limit

    def find(self, paths: Sequence[str]) -> list[DataFile]:
        """The files of some paths: in the order of the paths, those of a path as `_place` orders names.

        Raises:
            DataError: a path does not exist or has no file that can be read, or it is not clear whether files
                belong together.
        """
        files = [file for path in paths for file in self._of_path(path)]
        for file in files:
            if file.format != files[0].format:
                raise DataError(
                    f"{file.label}: is {file.format}, but {files[0].label} is {files[0].format}; "
                    "parts of one set must have one format (set data.format if the names mislead)"
                )
        return files

    def _of_path(self, path: str) -> list[DataFile]:
        place = os.path.expanduser(path)
        if not glob.has_magic(path) or os.path.lexists(place):
            return self._of_place(path)
        found = sorted(glob.glob(place, recursive=True), key=_place)
        found = [other for other in found if not os.path.basename(other).startswith(("_", "."))]
        if not found:
            raise DataError(f"{path}: no file matches this pattern")
        return [file for other in found for file in self._of_place(other)]

    def _of_place(self, path: str) -> list[DataFile]:
        """The files of a file, a folder or a zip."""
        source, name = open_source(path, self.limit)
        if name is None:
            return self._of_container(source)
        kind: str | None = self.wanted
        if kind == "auto":
            kind = self._format(name, self.patterns) or self._format(name, self.vague)
        if kind is None:
            raise DataError(f"{path}: unknown format; {self._known()}")
        return [DataFile(source, name, kind)]

    def _of_container(self, source: Source) -> list[DataFile]:
        names = [name for name in source.names() if not posixpath.basename(name).startswith("_")]
        names.sort(key=_place)
        by_format = self._by_format(names, self.patterns) or self._by_format(names, self.vague)
        if self.wanted != "auto":
            matching = [name for name in names if _matches(name, self.patterns[self.wanted])]
            matching = matching or [name for name in names if _matches(name, self.vague[self.wanted])]
            by_format = {self.wanted: matching or names} if names else {}
        for kind in self.whole:  # its folder may have further files, such as movies.csv
            if kind in by_format:
                by_format = {kind: by_format[kind]}
        if not by_format:
            if source.is_zip and "[Content_Types].xml" in names:
                raise DataError(f"{source.path}: a spreadsheet; export its sheet as CSV")
            raise DataError(f"{source.path}: contains no file of a known format; {self._known()}")
        if len(by_format) > 1:
            kinds = " and ".join(f"{kind} files ({found[0]})" for kind, found in by_format.items())
            raise DataError(f"{source.path}: contains {kinds}; set data.format to the one to read")
        ((kind, found),) = by_format.items()
        if len(found) > 1 and not _are_parts(found):
            if source.is_zip:
                fix = "extract it and give the path of one"
            else:
                pattern = source.path / f"*{Path(found[0]).suffix}"
                fix = f"give the path of one, or a pattern such as '{pattern}' if they are parts of one set"
            raise DataError(f"{source.path}: contains {listed(found)}; {fix}")
        return [DataFile(source, name, kind) for name in found]

    def _by_format(self, names: Sequence[str], patterns: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        by_format: dict[str, list[str]] = {}
        for name in names:
            kind = self._format(name, patterns)
            if kind is not None:
                by_format.setdefault(kind, []).append(name)
        return by_format

    def _format(self, name: str, patterns: Mapping[str, Sequence[str]]) -> str | None:
        return next((kind for kind, found in patterns.items() if _matches(name, found)), None)

    def _known(self) -> str:
        found = [
            pattern for known in (self.patterns, self.vague) for every in known.values() for pattern in every
        ]
        return f"known files are {', '.join(found)}; or set data.format"


def _matches(name: str, patterns: Sequence[str]) -> bool:
    base = posixpath.basename(name).lower().removesuffix(".gz")
    return any(fnmatch.fnmatchcase(base, pattern) for pattern in patterns)


def _are_parts(names: Sequence[str]) -> bool:
    """Whether names are those of parts of one set: they differ in numbers, months and UUIDs only.

    The parts of a partitioned set are in folders such as ``year=2020/month=1``.
    """
    return len({_shape(name) for name in names}) == 1


def _place(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """The place of a name among others: by number and month before by text, so part-2 is before part-10."""
    key = []
    for number, piece in enumerate(_ORDERED.split(name.lower())):
        if number % 2 == 0:
            key.append((1, 0, piece))
        else:
            value = int(piece) if piece.isdecimal() else 1 + _MONTHS.index(piece[:3])
            key.append((0, value, ""))
    return key, name


def _shape(name: str) -> str:
    folder, _, base = name.rpartition("/")
    outside = "/".join(part for part in folder.split("/") if "=" not in part)
    return f"{outside}/{_VARIES.sub('#', base.lower())}"
