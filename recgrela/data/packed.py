"""The packed form of interactions: a folder of plain arrays that are memory-mapped instead of loaded.

| file | rows |
|---|---|
| `header.json` | sizes, dtypes and hashes of the other files; hashes and description of the interactions |
| `items.bin` | [n_events] int32, as `Interactions.items` |
| `users.bin` | [n_users + 1, 2] int64: the numbers of each user's first event and first target |
| `blocks.bin` | int64: the row of the user that has target 64 j, j = 0, 1, ...; last, of the last target |
| `ids.bin`, `id_ends.bin`, `id_hashes.bin` | original ids of users with and without events; see `MappedIds` |
| `split.bin`, `valid.bin`, `test.bin` | int64 arrays of a split other than leave-one-out; see `Split` |
| `items.arrow` | Arrow IPC file: item_id and title of each item id |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from recgrela.data.ids import MappedIds
from recgrela.data.interactions import Interactions
from recgrela.data.mapped import MappedArray
from recgrela.data.split import Split
from recgrela.data.users import Users, held_out_places, target_counts
from recgrela.data.windows import MappedItems
from recgrela.system.errors import DataError

FORMAT, VERSION = "recgrela packed interactions", 2
HEADER, ITEM_TABLE = "header.json", "items.arrow"
# dtype and width of the array in each file
ARRAYS = {
    "items.bin": ("<i4", 1),
    "users.bin": ("<i8", 2),
    "blocks.bin": ("<i8", 1),
    "ids.bin": ("|u1", 1),
    "id_ends.bin": ("<i8", 1),
    "id_hashes.bin": ("<u8", 2),
}
SPLIT_ARRAYS = {"split.bin": ("<i8", 3), "valid.bin": ("<i8", 1), "test.bin": ("<i8", 1)}
BLOCK = 64  # targets


class MappedUserTable:
    """Users in a file; see `UserTable`. Args: users, blocks: the arrays; header: the header's content."""

    def __init__(self, users: MappedArray, blocks: MappedArray, header: dict[str, Any]) -> None:
        self._users, self._blocks = users, blocks
        self.num_users, self.num_targets = users.size - 1, header["num_targets"]
        self.max_events, self.max_targets = header["max_events"], header["max_targets"]

    def of_rows(self, rows: np.ndarray) -> Users:
        """See `UserTable`."""
        found = self._users.ranges(rows, np.full_like(rows, 2)).reshape(-1, 2, 2)
        return _users(rows, found[:, 0], found[:, 1])

    def of_targets(self, numbers: np.ndarray) -> Users:
        """See `UserTable`."""
        bounds = self._blocks.ranges(numbers // BLOCK, np.full_like(numbers, 2)).reshape(-1, 2)
        lengths = bounds[:, 1] - bounds[:, 0] + 2  # the users of a block and one more
        found = self._users.ranges(bounds[:, 0], lengths)
        ends = np.cumsum(lengths)
        not_after = np.concatenate(([0], np.cumsum(found[:, 1] <= np.repeat(numbers, lengths))))
        place = not_after[ends] - not_after[ends - lengths] - 1
        first = ends - lengths + place
        return _users(bounds[:, 0] + place, found[first], found[first + 1])


def _users(rows: np.ndarray, first: np.ndarray, after: np.ndarray) -> Users:
    events, targets = (after - first).T
    return Users(rows, first[:, 0], events, first[:, 1], targets)


class PackedInteractions(Interactions):
    """Interactions in a folder. Batches read only what they need.

    `items`, `offsets`, `item_ids`, `titles` and `dropped_users` are read into memory when they are used.

    Attributes:
        path: the folder.
        header: the content of its header.
        arrays: the arrays by the names of their files.
    """

    path: Path
    header: dict[str, Any]
    arrays: dict[str, MappedArray]
    user_ids: MappedIds

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        files = header["files"]
        arrays = {
            name: MappedArray(path / name, dtype, files[name]["rows"], width)
            for name, (dtype, width) in (ARRAYS | SPLIT_ARRAYS).items()
            if name in ARRAYS or header["has_split"]
        }
        users = MappedUserTable(arrays["users.bin"], arrays["blocks.bin"], header)
        text, ends, hashes = (arrays[name] for name in ("ids.bin", "id_ends.bin", "id_hashes.bin"))
        self.__dict__.update(  # the class is frozen
            path=path,
            header=header,
            arrays=arrays,
            users=users,
            user_ids=MappedIds(text, ends, hashes, users.num_users),
            n_items=header["n_items"],
            sha256=header["sha256"],
            description=header["description"],
            split=Split(*(arrays[name] for name in SPLIT_ARRAYS)) if header["has_split"] else None,
            _item_table=_read_item_table(path, header),
        )

    def __repr__(self) -> str:
        return f"PackedInteractions({str(self.path)!r})"

    @property
    def n_events(self) -> int:
        """Number of events."""
        return len(self.arrays["items.bin"])

    @cached_property
    def items(self) -> torch.Tensor:
        """[n_events] int32, all of them in memory."""
        return torch.from_numpy(self.arrays["items.bin"].read())

    @cached_property
    def offsets(self) -> torch.Tensor:
        """[n_users + 1] int64, all of them in memory."""
        return torch.from_numpy(np.ascontiguousarray(self.arrays["users.bin"].read()[:, 0]))

    @cached_property
    def item_ids(self) -> list[str]:
        """The original id of each item id; row 0 is "[PAD]"."""
        return self.__dict__["_item_table"]["item_id"].to_pylist()

    @cached_property
    def titles(self) -> list[str | None] | None:
        """A title or None for each item id; None if the source has no titles."""
        return self.__dict__["_item_table"]["title"].to_pylist() if self.header["titles"] else None

    @cached_property
    def dropped_users(self) -> frozenset[str]:
        """Original ids of the users without events after filtering."""
        rows = np.arange(self.n_users, len(self.arrays["id_hashes.bin"]))
        return frozenset(self.user_ids.take(rows).to_pylist())

    def to(self, device: torch.device | str) -> PackedInteractions:
        """The same interactions: they stay on the host, and batches are copied to the device."""
        return self

    def item_source(self, device: torch.device | str) -> MappedItems:
        """The items, to gather batches from."""
        return MappedItems(self.arrays["items.bin"], torch.device(device))

    def train_item_counts(self) -> torch.Tensor:
        """[n_items] int64, the number of training events of each item."""
        items, counts = self.arrays["items.bin"], np.zeros(self.n_items, dtype=np.int64)
        for block in items.blocks():
            counts += np.bincount(block, minlength=self.n_items)
        for rows, users in self._users_in_blocks():
            train = None if self.split is None else self.split.of_rows(rows)[1][:, 0]
            held_out = held_out_places(users[:, 0], train)
            counts -= np.bincount(items.rows(held_out), minlength=self.n_items)
        return torch.from_numpy(counts)

    def _users_in_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows [B] of users, and their part [B + 1, 2] of `users.bin`."""
        before, first = np.zeros((0, 2), dtype=np.int64), 0
        for block in self.arrays["users.bin"].blocks():
            part = np.concatenate((before, block))
            yield np.arange(first, first + len(part) - 1), part
            before, first = block[-1:], first + len(part) - 1

    def packed_sha256(self) -> str:
        """Hash of the filtered and ordered events, from the header."""
        return self.header["packed_sha256"]

    def find_user(self, user: str) -> int | None:
        """The row of a user, at least `n_users` if the user has no events; None if the user is unknown."""
        return self.user_ids.find(user)

    def verify(self) -> None:
        """Read everything once. Raises DataError if a file is not what was written, or inconsistent."""
        arrays = self.arrays
        for name, array in arrays.items():
            digest = hashlib.sha256()
            for block in array.blocks():
                digest.update(block.data)
                if name == "items.bin" and not (block.min() >= 1 and block.max() < self.n_items):
                    raise DataError(f"{array.path}: damaged: an item id is not in 1 .. {self.n_items - 1}")
            if digest.hexdigest() != self.header["files"][name]["sha256"]:
                raise DataError(f"{array.path}: damaged: its sha256 is not the one in {HEADER}")
        for rows, users in self._users_in_blocks():
            events, targets = np.diff(users, axis=0).T
            train = None if self.split is None else self.split.of_rows(rows)[1][:, 0]
            if (events < 1).any() or (targets != target_counts(events, train)).any():
                raise DataError(
                    f"{arrays['users.bin'].path}: damaged: a user without events, or with other targets"
                )
        ends = arrays["users.bin"].rows(np.array([0, self.n_users])).tolist()
        if ends != [[0, 0], [self.n_events, self.users.num_targets]]:
            raise DataError(f"{self.path / 'users.bin'}: damaged: it has other numbers than {HEADER}")


def is_packed(path: str | Path) -> bool:
    """Whether a path is a folder of packed interactions."""
    try:
        return (
            FORMAT in (Path(path).expanduser() / HEADER).read_text(encoding="utf-8", errors="replace")[:200]
        )
    except (OSError, RuntimeError, ValueError):  # RuntimeError: ~user; ValueError: a zero byte
        return False


def open_packed(path: str | Path, verify: bool = True) -> PackedInteractions:
    """Interactions in a folder, memory-mapped.

    Args:
        path: the folder.
        verify: read all files once and compare their hashes; not needed for a folder that this machine has
            just written or verified.

    Raises:
        DataError: a file is missing, damaged, truncated, or of a later version.
    """
    folder = Path(path).expanduser()
    try:
        data = PackedInteractions(folder, read_header(folder))
        if verify:
            data.verify()
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / HEADER}: damaged: {error!r}") from None
    return data


def read_header(folder: Path) -> dict[str, Any]:
    """The header's content. Raises DataError if it is missing, damaged or of a later version."""
    path = folder / HEADER
    try:
        header = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged: {error}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DataError(f"{path}: not the header of packed interactions")
    if header.get("version") != VERSION:
        raise DataError(
            f"{path}: version {header.get('version')!r}, but this version of recgrela reads {VERSION}; "
            "convert the source again"
        )
    if header.get("checksum") != checksum(header):
        raise DataError(f"{path}: damaged: its checksum is wrong; convert the source again")
    return header


def checksum(header: dict[str, Any]) -> str:
    """Hash of a header without its own checksum."""
    content = {key: value for key, value in header.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_item_table(path: Path, header: dict[str, Any]) -> pa.Table:
    """The table of items, which is small enough for memory."""
    place, recorded = path / ITEM_TABLE, header["files"][ITEM_TABLE]
    data = MappedArray(place, "|u1", recorded["rows"]).read()
    if hashlib.sha256(data.data).hexdigest() != recorded["sha256"]:
        raise DataError(f"{place}: damaged: its sha256 is not the one in {HEADER}")
    try:
        with pa.ipc.open_file(pa.BufferReader(data)) as reader:
            table = reader.read_all()
        if table.schema.names != ["item_id", "title"] or len(table) != header["n_items"]:
            raise DataError(f"{place}: damaged: expected item_id and title of {header['n_items']:,} items")
    except pa.ArrowException as error:
        raise DataError(f"{place}: damaged: {error}") from None
    return table
