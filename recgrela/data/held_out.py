"""A split by files of one's own: events for training, for valid and for test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from recgrela.data.events import Events
from recgrela.data.formats import read
from recgrela.data.formats.joining import join
from recgrela.data.split import TEST, VALID
from recgrela.settings.data import DataConfig
from recgrela.system.errors import ConfigError


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
    joined = replace(join([events for _, events in files]), source=first.source)
    phases = [np.full(part.users.size, phase, dtype=np.uint8) for phase, part in files]
    return joined, np.concatenate(phases)
