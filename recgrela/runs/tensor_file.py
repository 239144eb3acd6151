"""Files of tensors in the safetensors format, with a checksum of every byte.

The header's first entry is the metadata `sha256`: the hash of the whole file in which these 64 digits are
zeros. Files of earlier versions have none.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recgrela.system.errors import RunError, one_line
from recgrela.system.files import atomic_stream

CHECKSUM = "sha256"
CHUNK = 1 << 24  # elements on the host at a time
_ZEROS = "0" * 64
_START = f'{{"__metadata__":{{"{CHECKSUM}":"'.encode()
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Entry(NamedTuple):
    """A tensor to write.

    Attributes:
        name: its name in the file.
        dtype: its dtype.
        shape: its shape.
        chunks: its elements in row-major order, as tensors of this dtype on any device, which are taken one
            at a time.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: Iterable[Tensor]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Entry:
        """A tensor that exists as a whole, on any device."""
        return cls(name, tensor.dtype, tuple(tensor.shape), _chunks(tensor.detach()))


class Content(NamedTuple):
    """What a file holds.

    Attributes:
        metadata: its metadata without the checksum.
        checksum: its checksum; None in a file of an earlier version.
        tensors: its tensors on the CPU; None if they were not read.
    """

    metadata: dict[str, str]
    checksum: str | None
    tensors: dict[str, Tensor] | None


class NotFinite(RunError):
    """A tensor that must be finite has NaN or infinite elements.

    Attributes:
        name: the tensor's name.
    """

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(f"{path}: {name} has NaN or infinite values, so training diverged")
        self.name = name


def write_tensors(path: Path, entries: Sequence[Entry], metadata: Mapping[str, str]) -> str:
    """Write a file, replacing the one at `path`; one chunk of one tensor is on the host at a time.

    Returns:
        The checksum.

    Raises:
        NotFinite: a tensor has NaN or infinite elements; the previous file is unchanged.
        RunError: the file cannot be written; the previous file is unchanged.
        ValueError: two tensors have the same name, or chunks do not have a tensor's dtype or size.
    """
    ordered = in_file_order(entries)
    head = _head(ordered, metadata)
    digest = hashlib.sha256(head)
    with atomic_stream(path) as file:
        file.write(head)
        for entry in ordered:
            count = 0
            for chunk in entry.chunks:
                if chunk.dtype != entry.dtype:
                    raise ValueError(f"{entry.name}: a chunk has dtype {chunk.dtype}, expected {entry.dtype}")
                host = chunk.cpu().contiguous()
                if not is_finite(host):
                    raise NotFinite(path, entry.name)
                content = _bytes(host)
                digest.update(content)
                file.write(content)
                count += chunk.numel()
            if count != math.prod(entry.shape):
                raise ValueError(
                    f"{entry.name}: chunks have {count} elements, but its shape is {entry.shape}"
                )
        file.seek(8 + len(_START))
        file.write(digest.hexdigest().encode())
    return digest.hexdigest()


def in_file_order(entries: Sequence[Entry]) -> list[Entry]:
    """Tensors in the order in which `write_tensors` takes their chunks, which aligns each of them."""
    return sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))


def read_tensors(path: Path, kind: str, rows: Mapping[str, slice] | None = None) -> Content:
    """Read a file and check its checksum.

    Args:
        path: the file.
        kind: what it is, for errors: "checkpoint".
        rows: ranges of rows of the tensors of which only these are kept in memory.

    Raises:
        RunError: the file is missing or damaged.
    """
    for _ in range(10):
        try:
            return _read(path, kind, rows or {})
        except _Replaced:
            continue  # a run that is training has just replaced it
    raise RunError(f"{path}: is replaced again and again while it is read")


def read_metadata(path: Path, kind: str) -> Content:
    """Read a file's metadata only; its checksum is not checked. Raises RunError if it cannot be read."""
    with _open(path, kind) as file:
        metadata = dict(file.metadata() or {})
    return Content(metadata, metadata.pop(CHECKSUM, None), None)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has no NaN and no infinite elements; True for integers."""
    if not tensor.is_floating_point():
        return True
    # A sum has no temporary array. It also overflows if elements are huge, so only a finite one decides.
    return math.isfinite(float(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


class _Replaced(Exception):
    """The file at the path is no longer the one that was opened."""


@contextmanager
def _open(path: Path, kind: str) -> Iterator[safe_open]:
    if not path.is_file():
        raise RunError(f"{path}: no such {kind}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: not a {kind}, or damaged: {one_line(error)}") from error


def _read(path: Path, kind: str, rows: Mapping[str, slice]) -> Content:
    with _open(path, kind) as file:
        metadata = dict(file.metadata() or {})
        checksum = metadata.pop(CHECKSUM, None)
        names = file.offset_keys()
        if checksum is None:
            tensors = {name: file.get_tensor(name)[rows.get(name, ...)] for name in names}
            return Content(metadata, None, tensors)
        with path.open("rb") as stream:
            head = stream.read(8)
            head += stream.read(int.from_bytes(head, "little"))
        start, end = 8 + len(_START), 8 + len(_START) + len(_ZEROS)
        is_ours = head[8:start] == _START and head[start:end] == checksum.encode()
        digest = hashlib.sha256(head[:start] + _ZEROS.encode() + head[end:])
        tensors = {}
        for name in names:
            if name in rows:
                tensors[name] = _read_rows(file, name, rows[name], digest)
            else:
                tensors[name] = file.get_tensor(name)
                digest.update(_bytes(tensors[name]))
    if not is_ours or digest.hexdigest() != checksum:
        if read_metadata(path, kind).checksum != checksum:
            raise _Replaced
        raise RunError(f"{path}: damaged: its content does not have its checksum; restore the file")
    return Content(metadata, checksum, tensors)


def _read_rows(file: safe_open, name: str, wanted: slice, digest: hashlib._Hash) -> Tensor:
    """Some rows of a tensor; all of them are read, for the checksum, but a chunk at a time."""
    stored, kept = file.get_slice(name), []
    total, *width = stored.get_shape()
    each = max(1, CHUNK // max(1, math.prod(width)))
    for start in range(0, total, each):
        chunk = stored[start : start + each].contiguous()
        digest.update(_bytes(chunk))
        low, high = (min(max(row - start, 0), len(chunk)) for row in (wanted.start, wanted.stop))
        if low < high:
            kept.append(chunk[low:high].clone())
    return torch.cat(kept) if kept else stored[:0]


def _head(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": {CHECKSUM: _ZEROS, **metadata}}
    place = 0
    for entry in entries:
        if entry.name in header:
            raise ValueError(f"two tensors have the name {entry.name}")
        size = math.prod(entry.shape) * entry.dtype.itemsize
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [place, place + size],
        }
        place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), CHUNK):
        yield flat[start : start + CHUNK]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
