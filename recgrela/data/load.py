"""Loads the data of a configuration."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from recgrela.data import synthetic
from recgrela.data.events import Events
from recgrela.data.formats import read
from recgrela.data.formats.table import column_names, table_arrays
from recgrela.data.interactions import Interactions
from recgrela.data.prepare import prepare
from recgrela.settings.data import DataConfig
from recgrela.system.out_of_memory import MemoryPhase

TABLE = "the table of events"  # its name in messages


READING = MemoryPhase(
    "reading the data",
    "give fewer events (data.path, or data.synthetic_users and data.synthetic_events), or more memory",
)


@READING
def load(config: DataConfig) -> Interactions:
    """Read, filter, sort and pack the data of a run.

    Returns:
        Interactions on the CPU.

    Raises:
        DataError: the file is missing or invalid, or no events are left after filtering; the message names
            the file, and the line and column if there is one.
    """
    if config.path == "synthetic":
        events = synthetic.generate(
            config.synthetic_seed, config.synthetic_users, config.synthetic_items, config.synthetic_events
        )
    else:
        events = read(config)
    return prepare(events, config)


@READING
def load_table(table: pa.Table, config: DataConfig) -> Interactions:
    """Filter, sort and pack the events of an Arrow table, whose columns the configuration names.

    Returns:
        Interactions on the CPU.

    Raises:
        DataError: a column or a value is missing or invalid, or no events are left after filtering.
    """
    arrays = table_arrays(table, TABLE, column_names(config))
    digest = hashlib.sha256()
    for column in (arrays.users, arrays.items, arrays.times):
        digest.update(np.ascontiguousarray(column).data)
    for tokens in (arrays.user_tokens, arrays.item_tokens):
        digest.update("\0".join(tokens).encode())
    return prepare(Events(*arrays, sha256=digest.hexdigest(), source=TABLE, format="arrow"), config)
