"""A split by files of one's own: events for training, for valid and for test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from recgrela.data.events import Events
from recgrela.data.formats import read
from recgrela.data.split import TEST, VALID
from recgrela.settings.data import DataConfig
from recgrela.system.errors import ConfigError, DataError


def held_out_files(config: DataConfig) -> Iterator[tuple[int, Events]]:
    """The phase and the events of the files of valid and of test; none unless the split is by files.

    Raises:
        ConfigError: a path is missing.
        DataError: a file is missing or invalid.
    """
    if config.split != "files":
        return
    for name in ("valid_path", "test_path"):
        if getattr(config, name) is None:
            raise ConfigError(
                f"data.{name}: missing; data.split files needs data.valid_path and data.test_path"
            )
    for phase, path in ((VALID, config.valid_path), (TEST, config.test_path)):
        yield phase, read(replace(config, path=str(path)))


def join_files(files: Sequence[tuple[int, Events]]) -> tuple[Events, np.ndarray | None]:
    """The events of all files, in this order, and the phase of each, [n] uint8; None if there is one file.

    Raises:
        DataError: the files have different kinds of times.
    """
    first = files[0][1]
    if len(files) == 1:
        return first, None
    parts = [events for _, events in files]
    for part in parts:
        if part.times.dtype != first.times.dtype:
            raise DataError(f"{part.source}: times are {part.times.dtype}, but {first.times.dtype} before")
    users, user_tokens = _join([(part.users, part.user_tokens) for part in parts])
    items, item_tokens = _join([(part.items, part.item_tokens) for part in parts])
    titles: dict[str, str] = {}
    for part in parts:
        titles |= part.titles
    joined = Events(
        users=users,
        items=items,
        times=np.concatenate([part.times for part in parts]),
        user_tokens=user_tokens,
        item_tokens=item_tokens,
        sha256=hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest(),
        source=first.source,
        format=first.format,
        titles=titles,
    )
    phases = [np.full(part.users.size, phase, dtype=np.uint8) for phase, part in files]
    return joined, np.concatenate(phases)


def _join(parts: Sequence[tuple[np.ndarray, list[str]]]) -> tuple[np.ndarray, list[str]]:
    """Codes [n] int32 of several parts with tokens of their own, as codes of the tokens of all parts."""
    tokens = pa.chunked_array([pa.array(tokens, pa.large_string()) for _, tokens in parts])
    whole = tokens.combine_chunks().dictionary_encode()
    numbers, begin, codes = whole.indices.to_numpy(), 0, []
    for part, names in parts:
        codes.append(numbers[begin : begin + len(names)][part].astype(np.int32))
        begin += len(names)
    return np.concatenate(codes), whole.dictionary.to_pylist()
