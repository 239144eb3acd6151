"""Records on disk in buckets, each of which fits into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np


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
