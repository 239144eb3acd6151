"""Arrays in files, memory-mapped and read by the kernel, so that a file that shrinks gives no SIGBUS.

An access to a mapped page beyond the end of its file kills a process by SIGBUS. A system call that is given
such an address fails with EFAULT instead. Ranges are therefore gathered by `pwritev`, whose source is the
mapping and whose target is a file in memory: one call for up to 1,024 ranges, and no copy of the whole array.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recgrela.system.errors import DataError

BLOCK_BYTES = 1 << 22
_IOV_MAX = os.sysconf("SC_IOV_MAX")
_pwritev = ctypes.CDLL(None, use_errno=True).pwritev
_pwritev.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64]
_pwritev.restype = ctypes.c_ssize_t


class MappedArray:
    """An array [size] or [size, width] in a file of nothing else.

    Args:
        path: the file.
        dtype: the type of an element.
        size: the number of rows.
        width: the number of elements of a row.

    Raises:
        DataError: the file is missing or has another size; or later, from every method: it was changed since
            it was opened, or cannot be read. A file that is deleted or replaced by another stays readable.
    """

    def __init__(self, path: Path, dtype: str, size: int, width: int = 1) -> None:
        self.path, self.dtype, self.size, self.width = path, np.dtype(dtype), size, width
        self._row_bytes = self.dtype.itemsize * width
        self._file: int | None = None
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._stat = self._identity()
            if self._stat[0] != size * self._row_bytes:
                raise DataError(
                    f"{path}: damaged: {self._stat[0]:,} bytes, expected {size * self._row_bytes:,}"
                )
            if size:
                self._map = mmap.mmap(self._file, 0, prot=mmap.PROT_READ)
                self._map.madvise(mmap.MADV_RANDOM)
                self._address = np.frombuffer(self._map, np.uint8).ctypes.data
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def __len__(self) -> int:
        return self.size

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Some rows [B] int64: [B], or [B, width] if rows have several elements."""
        return self.ranges(rows, np.ones_like(rows))

    def ranges(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The rows of some ranges, end to end; starts and lengths are [B] int64, inside the array."""
        if starts.size and (starts.min() < 0 or lengths.min() < 0 or (starts + lengths).max() > self.size):
            raise DataError(f"{self.path}: damaged: an index points outside the {self.size:,} rows")
        if not (lengths > 0).all():
            starts, lengths = starts[lengths > 0], lengths[lengths > 0]
        vectors = np.empty((starts.size, 2), dtype=np.uint64)  # struct iovec: address, bytes
        np.multiply(starts, self._row_bytes, out=vectors[:, 0], casting="unsafe")
        np.multiply(lengths, self._row_bytes, out=vectors[:, 1], casting="unsafe")
        size = int(vectors[:, 1].sum())
        found = np.empty(size // self.dtype.itemsize, dtype=self.dtype)
        if size:
            vectors[:, 0] += np.uint64(self._address)
            found.view(np.uint8)[:] = self._gather(vectors, size)
        return self._shaped(found)

    def blocks(self) -> Iterator[np.ndarray]:
        """The array in blocks of about 4 MB, from the beginning."""
        step = max(BLOCK_BYTES // self._row_bytes, 1)
        for first in range(0, self.size, step):
            yield self._read(first, min(step, self.size - first))

    def read(self) -> np.ndarray:
        """The whole array, in memory."""
        return self._read(0, self.size)

    def _read(self, first: int, count: int) -> np.ndarray:
        found = np.empty(count * self.width, dtype=self.dtype)
        view, place = memoryview(found.view(np.uint8).data), first * self._row_bytes
        assert self._file is not None
        while len(view):
            try:
                got = os.preadv(self._file, [view[: 1 << 30]], place)
            except OSError as error:
                raise DataError(f"{self.path}: cannot be read ({error.strerror})") from None
            if got == 0:
                break
            view, place = view[got:], place + got
        self._check_unchanged()
        return self._shaped(found)

    def _gather(self, vectors: np.ndarray, size: int) -> np.ndarray:
        scratch = _scratch(size)
        written = 0
        for first in range(0, len(vectors), _IOV_MAX):
            part = vectors[first : first + _IOV_MAX]
            got = _pwritev(scratch.file, part.ctypes.data, len(part), written)
            if got < 0 and ctypes.get_errno() not in (errno.EFAULT, errno.EIO):
                number = ctypes.get_errno()
                raise DataError(f"{self.path}: cannot be read ({os.strerror(number)})")
            written += max(got, 0)
        self._check_unchanged()
        if written != size:
            raise DataError(f"{self.path}: cannot be read (input/output error)")
        return scratch.bytes[:size]

    def _check_unchanged(self) -> None:
        """A file that shrinks gives zeros up to the end of its last page, so every result is checked."""
        if (now := self._identity()) != self._stat:
            change = f"from {self._stat[0]:,} to {now[0]:,} bytes" if now[0] != self._stat[0] else "in place"
            raise DataError(f"{self.path}: was changed while it was read, {change}; restore it and resume")

    def _identity(self) -> tuple[int, int]:
        assert self._file is not None
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns

    def _shaped(self, values: np.ndarray) -> np.ndarray:
        return values if self.width == 1 else values.reshape(-1, self.width)


class _Scratch:
    """A file in memory, and the bytes that are written to it."""

    def __init__(self, size: int) -> None:
        self.pid = os.getpid()
        self.file = os.memfd_create("recgrela", os.MFD_CLOEXEC)
        os.ftruncate(self.file, size)
        self.bytes = np.frombuffer(mmap.mmap(self.file, size), np.uint8)

    def __del__(self) -> None:
        os.close(self.file)


_thread = threading.local()


def _scratch(size: int) -> _Scratch:
    """This thread's scratch with room for `size` bytes; a forked process does not share its parent's."""
    scratch = getattr(_thread, "scratch", None)
    if scratch is None or scratch.pid != os.getpid() or scratch.bytes.size < size:
        scratch = _thread.scratch = _Scratch(max(1 << 20, 1 << (size - 1).bit_length()))
    return scratch
