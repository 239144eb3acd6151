"""Warm start: a new run, on new data, that begins with the weights of another run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from recgrela.models.transfer import transfer
from recgrela.runs.items import Items
from recgrela.runs.new_items import fill_rows
from recgrela.runs.saved import load_run
from recgrela.system.errors import ConfigError, DataError, RunError
from recgrela.training.session import Session


@dataclass(frozen=True)
class Start:
    """Where the weights of a new run are from.

    Attributes:
        run: the folder of the run whose weights it begins with, those of that run's final table.
        new_items: first rows of items that the run does not have: "model", as drawn by a new model, or
            "mean" or "titles", as in `recgrela.runs.new_items.fill_rows`.
    """

    run: Path
    new_items: Literal["model", "titles", "mean"] = "model"


@dataclass(frozen=True)
class WarmStart:
    """What a new run takes over.

    Attributes:
        record: the section "init" of its protocol.json.
        items: its items; those that are retired in the other run still are.
    """

    record: dict[str, Any]
    items: Items

    def describe(self) -> str:
        """The record on one line."""
        parent, counts = self.record["parent"], self.record["items"]
        matched, new, dropped = (f"{counts[key]:,}" for key in ("matched", "new", "dropped"))
        return (
            f"weights of {parent['run']}, {parent['checkpoint']} ({parent['trained']}): {matched} items "
            f"of both runs, {new} new ones, {dropped} of that run only"
        )


def warm_start(session: Session, start: Start) -> WarmStart:
    """Give the model of a session the weights of a run. Items are matched by their original ids.

    Adam starts afresh, and so does the order of samples.

    Raises:
        ConfigError: the run's model has other settings, or a parameter of another shape.
        DataError: a new item has no first row (see `fill_rows`).
        RunError: the run cannot be read, or has none of the data's items.
    """
    with torch.random.fork_rng(devices=[]):  # building the other model draws numbers
        run = load_run(start.run, None, torch.device("cpu"))
    theirs = run.read_items()
    items = Items.of(session.data)
    ids = {token: item for item, token in enumerate(theirs.tokens) if item > 0}
    rows = np.asarray([0, *(ids.get(token, -1) for token in items.tokens[1:])], dtype=np.int64)
    known, new = np.flatnonzero(rows > 0), np.flatnonzero(rows < 0)
    if not known.size:
        raise RunError(
            f"--init: none of the {len(ids)} items of {start.run} is in {session.data.description['source']}"
        )
    try:
        transfer(run.model, session.model, rows)
    except ConfigError as error:
        raise ConfigError(f"--init {start.run}: {error}") from error
    items.retired[known] = theirs.retired[rows[known]]
    if start.new_items != "model" and new.size:
        if session.model.shards is not None:
            raise ConfigError(
                f"--init_items {start.new_items}: needs a whole table; use train.shard_items false"
            )
        try:
            fill_rows(session.model, items, new, known, start.new_items)
        except DataError as error:
            source = session.data.description["source"]
            raise DataError(f"{source}: {error}; give another --init_items") from error
    counts = {"matched": known.size, "new": new.size, "dropped": len(ids) - known.size}
    return WarmStart({"parent": run.parent_record(), "new_items": start.new_items, "items": counts}, items)
