"""Access to the files of a folder or zip, plain or compressed by gzip."""

from __future__ import annotations

import os
import posixpath
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from recgrela.data.formats.unpacking import DAMAGE, GZIP, ZIP, Limit, Rejoined, damage, gunzip, open_entry
from recgrela.system.errors import DataError
from recgrela.system.suggest import near_file


@dataclass(frozen=True)
class Source:
    """The files of a folder or of a zip.

    Attributes:
        path: the folder or the zip.
        is_zip: whether it is a zip.
        limit: the number of bytes that a file may unpack to.
    """

    path: Path
    is_zip: bool
    limit: Limit

    def names(self) -> list[str]:
        """Sorted names of the files, except hidden ones. Names in a zip include folders.

        A folder's sub-folders are read if they are of a partitioned set, such as ``year=2020/month=1``.
        """
        if self.is_zip:
            try:
                with zipfile.ZipFile(self.path) as archive:
                    names = archive.namelist()
            except OSError as error:
                raise _unreadable(self.path, error) from None
            except DAMAGE as error:
                raise damage(str(self.path), error) from None
            names = [name for name in names if name and not name.endswith("/")]
        else:
            try:
                names = list(_names(self.path, ""))
            except OSError as error:
                raise _unreadable(self.path, error) from None
        return sorted(name for name in names if not posixpath.basename(name).startswith("."))

    def label(self, name: str) -> str:
        """The name of a file in messages."""
        return f"{self.path}:{name}" if self.is_zip else str(self.path / name)

    def sibling(self, name: str, *others: str) -> str | None:
        """The first of ``others`` that is in the same folder as ``name``; letter case is ignored."""
        present = {present.lower(): present for present in self.names()}
        candidates = [posixpath.join(posixpath.dirname(name), other).lower() for other in others]
        return next((present[candidate] for candidate in candidates if candidate in present), None)

    def read(self, name: str) -> pa.Buffer:
        """A file's bytes, decompressed if they are gzip, whatever the name is.

        Raises:
            DataError: the file cannot be read, is a damaged archive, or unpacks to more than the limit.
        """
        label = self.label(name)
        try:
            if self.is_zip:
                with zipfile.ZipFile(self.path) as archive:
                    return self._read_entry(archive, name)
            with open(self.path / name, "rb") as file:
                start = file.read(len(GZIP))
                if start == GZIP:
                    file.seek(0)
                    return gunzip(file, self.limit, label).read_all()
            with pa.memory_map(os.fsencode(self.path / name)) as file:
                return file.read_buffer()
        except OSError as error:
            if error.errno is None:  # of a decompressor, not of the system
                raise damage(label, error) from None
            raise _unreadable(label, error) from None
        except DAMAGE as error:
            raise damage(label, error) from None

    def _read_entry(self, archive: zipfile.ZipFile, name: str) -> pa.Buffer:
        label = self.label(name)
        with open_entry(archive, name, self.limit, label) as stream:
            start = stream.read(len(GZIP))
            if start == GZIP:
                return gunzip(Rejoined(start, stream), self.limit, label).read_all()
            return stream.read_all(start)


def open_source(path: str, limit: Limit | None = None) -> tuple[Source, str | None]:
    """The source of ``path``, and the file's name if the path is a single file.

    Args:
        path: a file, a folder or a zip.
        limit: of the bytes that a file unpacks to; None: half of the memory that is available.

    Raises:
        DataError: the path does not exist; the message suggests a similar name.
    """
    limit = limit or Limit.of_memory()
    try:
        place = Path(path).expanduser()
        mode = place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file or folder{near_file(place)}") from None
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~user; ValueError: a zero byte
        raise _unreadable(path, error) from None
    if stat.S_ISDIR(mode):
        return Source(place, False, limit), None
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: neither a file nor a folder")
    if place.suffix.lower() == ".zip" or _is_zip(place):
        return Source(place, True, limit), None
    return Source(place.parent, False, limit), place.name


def _names(folder: Path, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                yield prefix + entry.name
            elif "=" in entry.name and entry.is_dir():
                yield from _names(folder / entry.name, f"{prefix}{entry.name}/")


def _is_zip(path: Path) -> bool:
    """Whether a file begins as a zip does; a file that cannot be read is reported when it is opened."""
    try:
        with path.open("rb") as file:
            return file.read(len(ZIP)) == ZIP
    except OSError:
        return False


def _unreadable(path: Path | str, error: Exception) -> DataError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return DataError(f"{path}: cannot be read ({reason})")
