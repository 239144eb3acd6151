"""Access to the files of a folder or zip, plain or compressed by gzip."""

from __future__ import annotations

import gzip
import posixpath
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from recgrela.system.errors import DataError
from recgrela.system.suggest import near_file


@dataclass(frozen=True)
class Source:
    """The files of a folder or of a zip.

    Attributes:
        path: the folder or the zip.
        is_zip: whether it is a zip.
    """

    path: Path
    is_zip: bool

    def names(self) -> list[str]:
        """Sorted names of the files, except hidden ones; names in a zip include folders."""
        if self.is_zip:
            try:
                with zipfile.ZipFile(self.path) as archive:
                    names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
            except zipfile.BadZipFile as error:
                raise DataError(f"{self.path}: damaged zip ({error})") from None
            except OSError as error:
                raise _unreadable(self.path, error) from None
        else:
            try:
                names = [entry.name for entry in self.path.iterdir() if entry.is_file()]
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
        """A file's bytes, decompressed if its name ends in .gz. Raises DataError if it cannot be read."""
        try:
            if self.is_zip:
                with zipfile.ZipFile(self.path) as archive:
                    data = pa.py_buffer(archive.read(name))
            else:
                with pa.memory_map(str(self.path / name)) as file:
                    data = file.read_buffer()
            return pa.py_buffer(gzip.decompress(data)) if name.lower().endswith(".gz") else data
        except (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(f"{self.label(name)}: damaged or truncated archive ({error})") from None
        except (OSError, RuntimeError) as error:  # RuntimeError: a zip with a password
            raise _unreadable(self.label(name), error) from None


def open_source(path: str) -> tuple[Source, str | None]:
    """The source of ``path``, and the file's name if the path is a single file.

    Raises DataError if the path does not exist; the message suggests a similar name.
    """
    try:
        place = Path(path).expanduser()
        mode = place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file or folder{near_file(place)}") from None
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~user; ValueError: a zero byte
        raise _unreadable(path, error) from None
    if stat.S_ISDIR(mode):
        return Source(place, is_zip=False), None
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: neither a file nor a folder")
    if place.suffix.lower() == ".zip":
        return Source(place, is_zip=True), None
    return Source(place.parent, is_zip=False), place.name


def _unreadable(path: Path | str, error: Exception) -> DataError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return DataError(f"{path}: cannot be read ({reason})")
