"""Records on disk in buckets, each of which fits into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from recgrela.data.ids import id_bytes


class Buckets:
    """Appends records to files, one for each bucket.

    Args:
        folder: an existing folder for the files.
        name: the beginning of their names.
        count: the number of buckets.
        dtype: the type of a record.
    """

    def __init__(self, folder: Path, name: str, count: int, dtype: np.dtype) -> None:
        self.count, self._dtype = count, np.dtype(dtype)
        self._paths = [folder / f"{name}.{bucket}" for bucket in range(count)]

    def append(self, buckets: np.ndarray, records: np.ndarray) -> None:
        """Append records [n] to their buckets [n]; the order within a bucket is kept."""
        order = np.argsort(buckets, kind="stable")
        ends = np.searchsorted(buckets[order], np.arange(self.count), side="right")
        for bucket, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if end > begin:
                with self._paths[bucket].open("ab") as file:
                    file.write(np.ascontiguousarray(records[order[begin:end]]).data)

    def read(self, bucket: int) -> np.ndarray:
        """The records of a bucket."""
        path = self._paths[bucket]
        return np.fromfile(path, self._dtype) if path.exists() else np.empty(0, self._dtype)

    def replace(self, bucket: int, records: np.ndarray) -> None:
        """Replace the records of a bucket."""
        records.tofile(self._paths[bucket])

    def remove(self, bucket: int) -> None:
        """Delete the records of a bucket."""
        self._paths[bucket].unlink(missing_ok=True)


class IdBuckets:
    """Appends ids to buckets; the arguments are those of `Buckets`."""

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self.sizes = np.zeros(count, dtype=np.int64)  # ids in each bucket
        self._text = [folder / f"{name}.text.{bucket}" for bucket in range(count)]
        self._lengths = Buckets(folder, f"{name}.lengths", count, np.dtype("<i8"))

    def append(self, buckets: np.ndarray, ids: pa.Array) -> None:
        """Append ids [n], as strings, to their buckets [n]; the order within a bucket is kept."""
        order = np.argsort(buckets, kind="stable")
        text, places = id_bytes(ids.take(pa.array(order)))
        self._lengths.append(buckets[order], np.diff(places))
        sizes = np.bincount(buckets, minlength=self.sizes.size)
        ends = np.cumsum(sizes)
        for bucket in np.flatnonzero(sizes):
            with self._text[bucket].open("ab") as file:
                file.write(text[places[ends[bucket] - sizes[bucket]] : places[ends[bucket]]].data)
        self.sizes += sizes

    def read(self, bucket: int) -> pa.Array:
        """The ids of a bucket."""
        offsets = np.concatenate(([0], np.cumsum(self._lengths.read(bucket))))
        path = self._text[bucket]
        text = np.fromfile(path, np.uint8) if path.exists() else np.empty(0, np.uint8)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
        return pa.Array.from_buffers(pa.large_string(), offsets.size - 1, buffers)

    def replace(self, bucket: int, ids: pa.Array) -> None:
        """Replace the ids of a bucket."""
        text, places = id_bytes(ids)
        text.tofile(self._text[bucket])
        self._lengths.replace(bucket, np.diff(places))
        self.sizes[bucket] = len(ids)
