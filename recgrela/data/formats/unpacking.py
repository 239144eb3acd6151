"""Decompression within a limit, so that a small file cannot fill the memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import IO, Protocol, cast

import pyarrow as pa
import torch

from recgrela.system.errors import DataError
from recgrela.system.memory import available_memory
from recgrela.system.text import one_line

CHUNK = 1 << 20  # bytes
GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"  # the beginnings of such files
SETTING = "data.max_unpacked_gb"

# Errors that the libraries raise for a damaged archive. NotImplementedError: a later version of zip, or an
# unknown compression; RuntimeError: a password; the last four: headers that contradict each other.
DAMAGE = (
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    LookupError,
    ValueError,
    OverflowError,
)


class Stream(Protocol):
    """The reading end of a binary file."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Limit:
    """A limit of unpacked bytes.

    Attributes:
        size: bytes.
        name: its name in messages.
        fix: what a user can do about it.
        verb: what a file that is too large does.
    """

    size: int
    name: str
    fix: str
    verb: str = "unpacks to"

    @classmethod
    def of_memory(cls, gigabytes: float | None = None, setting: str | None = None) -> Limit:
        """`gigabytes` (10^9 bytes) that a setting gives; None: half of the memory that is available now."""
        if gigabytes is not None:
            return cls(int(gigabytes * 1e9), f"the limit {setting}", "raise it if the file is right")
        fix = "unpack the file, or use less of it" if setting is None else f"set {setting} to allow more"
        available = available_memory(torch.device("cpu"))
        if available is None:  # a system other than Linux: what the machine has
            available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(available // 2, "half of the memory that is available", fix)

    @classmethod
    def of_plain_text(cls) -> Limit:
        """The limit of a text file that is not compressed: half of the memory that is available now."""
        limit = cls.of_memory()
        return cls(limit.size, limit.name, "use a smaller file", "has")

    def check(self, size: int, label: str) -> None:
        """Raises DataError, which begins with `label`, if `size` bytes are too many."""
        if size > self.size:
            raise DataError(
                f"{label}: {self.verb} more than {self.size / 1e9:,.3g} GB, {self.name}; {self.fix}"
            )


class Within:
    """A stream that raises DataError once it has given more bytes than a limit."""

    def __init__(self, stream: Stream, limit: Limit, label: str) -> None:
        self._stream, self._limit, self._label = stream, limit, label
        self._size = 0

    def read(self, size: int = CHUNK) -> bytes:
        data = self._stream.read(size)
        self._size += len(data)
        self._limit.check(self._size, self._label)
        return data

    def read_all(self, start: bytes = b"") -> pa.Buffer:
        """All bytes, after those that were read before. The memory grows as they arrive."""
        data = bytearray(start)
        while part := self.read(CHUNK):
            data += part
        return pa.py_buffer(data)


class Rejoined:
    """A stream with its beginning, which was read before."""

    def __init__(self, start: bytes, stream: Stream) -> None:
        self._start, self._stream = start, stream

    def read(self, size: int) -> bytes:
        start, self._start = self._start[:size], self._start[size:]
        return start or self._stream.read(size)


def gunzip(stream: Stream, limit: Limit, label: str) -> Within:
    """The decompressed bytes of a gzip stream."""
    return Within(gzip.GzipFile(fileobj=cast("IO[bytes]", stream), mode="rb"), limit, label)


@contextmanager
def open_entry(archive: zipfile.ZipFile, name: str, limit: Limit, label: str) -> Iterator[Within]:
    """The bytes of a file in a zip.

    `zipfile` decompresses bzip2 and LZMA by whole blocks of input, which may expand to gigabytes; here they
    are decompressed to a bounded number of bytes a time.
    """
    entry = archive.getinfo(name)
    if entry.volume:
        raise NotImplementedError("the archive consists of several files")
    limit.check(entry.file_size, label)
    if entry.compress_type not in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with archive.open(name) as stream:
            yield Within(stream, limit, label)
        return
    raw = copy(entry)
    raw.compress_type, raw.file_size = zipfile.ZIP_STORED, entry.compress_size
    raw.CRC = None  # type: ignore[assignment]  # of the decompressed bytes, which _Checked compares
    with archive.open(raw) as stream:
        plain: Stream = (
            bz2.BZ2File(stream) if entry.compress_type == zipfile.ZIP_BZIP2 else _lzma(stream, entry)
        )
        yield Within(_Checked(plain, entry), limit, label)


def _lzma(stream: IO[bytes], entry: zipfile.ZipInfo) -> lzma.LZMAFile:
    """An LZMA entry: the version, the length 5, a byte of options, the size of the dictionary, the data."""
    _, length, packed, dict_size = struct.unpack("<HHBI", stream.read(9))
    if length != 5 or packed >= 9 * 5 * 5:
        raise zipfile.BadZipFile(f"bad LZMA header of {entry.filename!r}")
    lines, lc = divmod(packed, 9)
    pb, lp = divmod(lines, 5)
    # A dictionary larger than the file is never used, but its memory would be allocated.
    size = max(min(dict_size, entry.file_size), 4096)
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": size, "lc": lc, "lp": lp, "pb": pb}]
    return lzma.LZMAFile(stream, format=lzma.FORMAT_RAW, filters=filters)


class _Checked:
    """A decompressed entry of a zip, with the recorded size and checksum."""

    def __init__(self, stream: Stream, entry: zipfile.ZipInfo) -> None:
        self._stream, self._entry = stream, entry
        self._left, self._crc = entry.file_size, 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left)) if self._left else b""
        self._left -= len(data)
        self._crc = zlib.crc32(data, self._crc)
        if not data and self._left:
            raise EOFError("the compressed data is shorter than recorded")
        if not self._left and self._crc != self._entry.CRC:
            raise zipfile.BadZipFile(f"Bad CRC-32 for file {self._entry.filename!r}")
        return data


def damage(label: str, error: Exception) -> DataError:
    """The error of a damaged or unsupported archive."""
    if isinstance(error, NotImplementedError | RuntimeError):
        return DataError(f"{label}: cannot be unpacked ({one_line(error)}); unpack it with another program")
    return DataError(f"{label}: damaged or truncated archive ({one_line(error) or type(error).__name__})")
