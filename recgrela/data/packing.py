"""Writes packed interactions, user by user, in memory that does not depend on their number."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from recgrela.data.buckets import Buckets
from recgrela.data.ids import hash_ids, id_bytes
from recgrela.data.interactions import Interactions
from recgrela.data.mapped import MappedArray
from recgrela.data.packed import (
    ARRAYS,
    BLOCK,
    FORMAT,
    HEADER,
    ITEM_TABLE,
    SPLIT_ARRAYS,
    VERSION,
    checksum,
)
from recgrela.data.split import SplitPart, join_sha256
from recgrela.data.users import target_counts
from recgrela.system.errors import ConfigError, DataError, RunError
from recgrela.system.files import flush_file

HASH_BUCKETS = 64
_AT_ONCE = 1 << 20  # users

# ---- the files


class _File:
    """A file that rows are appended to, with their number and hash."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.rows, self.digest, self._dtype = 0, hashlib.sha256(), np.dtype(dtype)
        self._file = path.open("wb")

    def append(self, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, dtype=self._dtype)
        self._file.write(values.data)
        self.digest.update(values.data)
        self.rows += len(values)

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def describe(self) -> dict[str, Any]:
        return {"rows": self.rows, "dtype": self._dtype.str, "sha256": self.digest.hexdigest()}


class PackedWriter:
    """Writes a folder of packed interactions; the folder appears when it is complete.

    A context manager: ``append`` users in the order of their rows, then ``finish``. Without ``finish``
    nothing is left.

    Args:
        out: the folder, which must not exist.
        has_split: whether the split is not leave-one-out; every `append` then has a part of it.

    Raises:
        ConfigError: the folder exists.
        RunError: a file cannot be written; also from every method.
    """

    def __init__(self, out: Path, has_split: bool = False) -> None:
        self.out, self._temporary = out, out.with_name(f".{out.name}.tmp")
        if out.exists():
            raise ConfigError(f"{out}: exists already; give another folder, or remove it")
        self._num_events = self._num_targets = self._max_events = self._max_targets = 0
        self._max_item, self._has_split = 0, has_split
        self._split_ends = np.zeros(3, dtype=np.int64)
        self._last_row = 0  # of a user with targets

    def __enter__(self) -> PackedWriter:
        try:
            if self._temporary.exists():  # of a writer that was killed
                shutil.rmtree(self._temporary)
            self._temporary.mkdir(parents=True)
            arrays = ARRAYS | SPLIT_ARRAYS if self._has_split else ARRAYS
            self._files = {name: _File(self._temporary / name, dtype) for name, (dtype, _) in arrays.items()}
            if self._has_split:
                self._files["split.bin"].append(np.zeros((1, 3), dtype=np.int64))
            self._files["users.bin"].append(np.zeros((1, 2), dtype=np.int64))
            self._files["id_ends.bin"].append(np.zeros(1, dtype=np.int64))
            hashes = np.dtype(("<u8", (2,)))
            self._hashes = Buckets(self._temporary, "hashes", HASH_BUCKETS, hashes)
        except OSError as error:
            raise self._failed(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise self._failed(error) from error

    def append(
        self, ids: pa.Array, events: np.ndarray, items: np.ndarray, split: SplitPart | None = None
    ) -> None:
        """Append users.

        Args:
            ids: [B] their original ids, as strings.
            events: [B] int64, the number of events of each, at least 1.
            items: [sum of events] int32, their items in order of time.
            split: their training events and targets; None: leave-one-out.
        """
        if len(ids) != events.size or events.min(initial=1) < 1 or events.sum() != items.size:
            raise ValueError("append: ids, events and items do not belong together")
        if (split is not None) != self._has_split or (split is not None and split.train.size != events.size):
            raise ValueError("append: the split does not belong to the folder or to these users")
        if not events.size:
            return
        if items.min() < 1:
            raise ValueError(f"append: item id {items.min()} is below 1")
        self._max_item = max(self._max_item, int(items.max()))
        first_row = self._files["users.bin"].rows - 1
        targets = target_counts(events, None if split is None else split.train)
        ends = np.stack((self._num_events + np.cumsum(events), self._num_targets + np.cumsum(targets)), 1)
        starts = ends[:, 1] - targets
        self._files["items.bin"].append(items)
        self._files["users.bin"].append(ends)
        self._append_ids(ids)
        if split is not None:
            counts = np.stack((split.train, split.valid.counts, split.test.counts), 1)
            bounds = self._split_ends + np.cumsum(counts, axis=0)
            self._split_ends = bounds[-1]
            for name, values in zip(SPLIT_ARRAYS, (bounds, split.valid[1], split.test[1]), strict=True):
                self._files[name].append(values)
        blocks = np.arange(-(-self._num_targets // BLOCK), -(-int(ends[-1, 1]) // BLOCK)) * BLOCK
        self._files["blocks.bin"].append(first_row + np.searchsorted(starts, blocks, side="right") - 1)
        if targets.any():
            self._last_row = first_row + int(np.flatnonzero(targets)[-1])
        self._num_events, self._num_targets = ends[-1].tolist()
        self._max_events = max(self._max_events, int(events.max()))
        self._max_targets = max(self._max_targets, int(targets.max()))

    def split_sha256(self) -> str:
        """`Split.sha256` of the users so far."""
        return join_sha256(self._files[name].digest.hexdigest() for name in SPLIT_ARRAYS)

    def finish(
        self,
        item_ids: Sequence[str],
        titles: Sequence[str | None] | None,
        sha256: str,
        description: dict[str, Any],
        dropped: Iterable[pa.Array] = (),
    ) -> None:
        """Write the rest and the header, and give the folder its name.

        Args:
            item_ids, titles, sha256, description: as in `Interactions`.
            dropped: original ids of the users without events after filtering, in parts.
        """
        num_users = self._files["users.bin"].rows - 1
        if self._max_item >= len(item_ids):
            raise ValueError(f"finish: {len(item_ids)} item ids, but item {self._max_item} occurs")
        if num_users == 0:
            raise DataError(
                f"{description.get('source', self.out)}: no events are left, so nothing is packed"
            )
        for part in dropped:
            self._append_ids(part)
        if self._num_targets:
            self._files["blocks.bin"].append(np.array([self._last_row]))
        for bucket in range(HASH_BUCKETS):
            hashes = self._hashes.read(bucket)
            self._files["id_hashes.bin"].append(hashes[np.lexsort((hashes[:, 1], hashes[:, 0]))])
            self._hashes.remove(bucket)
        for file in self._files.values():
            file.close()
        files = {name: file.describe() for name, file in self._files.items()}
        files[ITEM_TABLE] = self._write_items(item_ids, titles)
        header = {
            "format": FORMAT,
            "version": VERSION,
            "sha256": sha256,
            "packed_sha256": self._packed_sha256(),
            "n_items": len(item_ids),
            "titles": titles is not None,
            "num_targets": self._num_targets,
            "max_events": self._max_events,
            "max_targets": self._max_targets,
            "has_split": self._has_split,
            "description": description,
            "files": files,
        }
        header["checksum"] = checksum(header)
        self._write(HEADER, (json.dumps(header, indent=1) + "\n").encode())
        os.rename(self._temporary, self.out)
        flush_file(self.out.parent)

    def _append_ids(self, ids: pa.Array) -> None:
        text, places = id_bytes(ids)
        ends = self._files["id_ends.bin"]
        numbers = np.arange(ends.rows - 1, ends.rows - 1 + len(ids))
        hashes = hash_ids(text, places)
        ends.append(self._files["ids.bin"].rows + places[1:])
        self._files["ids.bin"].append(text)
        records = np.stack((hashes, numbers.astype(np.uint64)), 1)
        self._hashes.append((hashes >> np.uint64(58)).astype(np.int64), records)

    def _write_items(self, item_ids: Sequence[str], titles: Sequence[str | None] | None) -> dict[str, Any]:
        kind = pa.large_string()
        columns = [pa.array(item_ids, kind), pa.array(titles or [None] * len(item_ids), kind)]
        sink = pa.BufferOutputStream()
        table = pa.table(columns, names=["item_id", "title"])
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        content = sink.getvalue()
        self._write(ITEM_TABLE, content)
        return {"rows": content.size, "dtype": "|u1", "sha256": hashlib.sha256(content).hexdigest()}

    def _write(self, name: str, content: bytes | pa.Buffer) -> None:
        with (self._temporary / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _packed_sha256(self) -> str:
        """As `Interactions.packed_sha256`: the hash of all items and then of the users' first events."""
        digest, users = self._files["items.bin"].digest.copy(), self._files["users.bin"].rows
        for block in MappedArray(self._temporary / "users.bin", *("<i8", users, 2)).blocks():
            digest.update(np.ascontiguousarray(block[:, 0]).data)
        return digest.hexdigest()

    def _failed(self, error: OSError) -> RunError:
        return RunError(f"cannot write {self.out}: {error.strerror or error}")


# ---- whole interactions


def write_packed(data: Interactions, out: Path) -> None:
    """Write interactions as a folder. Raises ConfigError if it exists, RunError if it cannot be written."""
    offsets, items = data.host_offsets(), data.items.cpu().numpy()
    split = data.split
    with PackedWriter(out, has_split=split is not None) as writer:
        for first in range(0, data.n_users, _AT_ONCE):
            rows = slice(first, min(first + _AT_ONCE, data.n_users))
            bounds = offsets[rows.start : rows.stop + 1]
            ids = pa.array(list(data.user_ids[rows]), pa.large_string())
            part = None if split is None else split.part(rows.start, rows.stop)
            writer.append(ids, np.diff(bounds), items[bounds[0] : bounds[-1]], part)
        dropped = [pa.array(sorted(data.dropped_users), pa.large_string())]
        writer.finish(data.item_ids, data.titles, data.sha256, data.description, dropped)
