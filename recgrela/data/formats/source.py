"""Where the bytes come from: a file, a folder or a zip, plain or gzip."""

from __future__ import annotations

import gzip
import posixpath
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from recgrela.errors import DataError
from recgrela.suggest import near_miss


@dataclass(frozen=True)
class Source:
    """The named files of a folder or of a zip.

    Attributes:
        path: the folder or the zip.
        is_zip: which of the two.
    """

    path: Path
    is_zip: bool

    def names(self) -> list[str]:
        """Names of the files, sorted; in a zip with the folders inside it. Hidden files are left out."""
        if self.is_zip:
            try:
                with zipfile.ZipFile(self.path) as archive:
                    names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
            except zipfile.BadZipFile as error:
                raise DataError(f"{self.path}: damaged zip ({error})") from None
        else:
            names = [entry.name for entry in self.path.iterdir() if entry.is_file()]
        return sorted(name for name in names if not posixpath.basename(name).startswith("."))

    def label(self, name: str) -> str:
        """How messages call a file."""
        return f"{self.path}:{name}" if self.is_zip else str(self.path / name)

    def beside(self, name: str, *others: str) -> str | None:
        """The first of ``others`` that lies in the same folder as ``name``."""
        present = set(self.names())
        candidates = [posixpath.join(posixpath.dirname(name), other) for other in others]
        return next((candidate for candidate in candidates if candidate in present), None)

    def read(self, name: str) -> pa.Buffer:
        """A file's bytes, decompressed where its name ends in .gz. Raises DataError if that fails."""
        try:
            if self.is_zip:
                with zipfile.ZipFile(self.path) as archive:
                    data = pa.py_buffer(archive.read(name))
            else:
                with pa.memory_map(str(self.path / name)) as file:
                    data = file.read_buffer()
            return pa.py_buffer(gzip.decompress(data)) if name.endswith(".gz") else data
        except (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(f"{self.label(name)}: damaged or truncated archive ({error})") from None
        except (OSError, RuntimeError) as error:  # RuntimeError: a zip with a password
            raise DataError(f"{self.label(name)}: cannot be read ({error})") from None


def open_source(path: str) -> tuple[Source, str | None]:
    """The source that holds ``path``, and the file's name where the path is one file.

    Raises DataError, with the nearest name there is, if nothing is there.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return Source(place, is_zip=False), None
    if place.is_file():
        if place.suffix.lower() == ".zip":
            return Source(place, is_zip=True), None
        return Source(place.parent, is_zip=False), place.name
    folder = place.parent
    present = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    raise DataError(f"{path}: no such file or folder{near_miss(place.name, present)}")
