"""Loads the data of a configuration."""

from __future__ import annotations

from recgrela.data import synthetic
from recgrela.data.formats import read
from recgrela.data.interactions import Interactions
from recgrela.data.prepare import prepare
from recgrela.settings.data import DataConfig


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
