"""Stores the events of a file before the server starts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from recgrela.data import DataConfig
from recgrela.data.events import Events
from recgrela.data.formats import read
from recgrela.data.reading import without_duplicates
from recgrela.settings.data import with_absolute_path, without_split
from recgrela.store import Store
from recgrela.system.out_of_memory import MemoryPhase

ROWS = 100_000  # events of a transaction


@MemoryPhase("storing the events of a file", "split the file, and import its parts one by one")
def import_events(store: Store, path: str, config: DataConfig) -> tuple[int, int]:
    """Stores all events of a file. Events that an earlier import of the same file has stored are skipped.

    Args:
        store: the store.
        path: a file in one of the formats of training data.
        config: settings of the model's training data: columns, format, and rules for single events.

    Returns:
        The numbers of events that were stored now, and that the file has by the rules of the settings.

    Raises:
        DataError: the file cannot be read.
        RunError: the events cannot be stored; those before them are.
    """
    events, _ = without_duplicates(read(with_absolute_path(without_split(config, path))), config)
    return store.import_events(_tables(events)), len(events.users)


def _tables(events: Events) -> Iterator[pa.Table]:
    users, items = (pa.array(tokens, pa.string()) for tokens in (events.user_tokens, events.item_tokens))
    times = events.times if events.ticks is None else events.times / events.ticks  # in seconds
    for begin in range(0, len(events.users), ROWS):
        rows = np.arange(begin, min(begin + ROWS, len(events.users)))
        # The key is the place in the file, so that an import that was interrupted can be repeated.
        ids = [f"{events.sha256[:8]}/{row:x}" for row in rows.tolist()]
        yield pa.table(
            {
                "user": users.take(pa.array(events.users[rows])),
                "item": items.take(pa.array(events.items[rows])),
                "time": pa.array(times[rows]),
                "id": pa.array(ids, pa.string()),
            }
        )
