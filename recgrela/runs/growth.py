"""A new run from a run, with items added to its catalogue or retired from it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from recgrela import _C
from recgrela.data.item_file import ItemFile
from recgrela.models import SequenceModel, build
from recgrela.models.transfer import transfer
from recgrela.runs import checkpoint
from recgrela.runs.consistency import recorded_data, recorded_ids, recorded_items
from recgrela.runs.folder import RunFolder
from recgrela.runs.items import Items, ids_sha256, read_items, write_items
from recgrela.runs.lock import owned
from recgrela.runs.new_items import NEIGHBOURS, POWER, fill_rows, set_vectors
from recgrela.runs.protocol import now
from recgrela.runs.saved import SavedRun
from recgrela.system.errors import DataError, RunError
from recgrela.system.files import atomic_write_text
from recgrela.system.suggest import near_miss

NewRows = Literal["titles", "mean", "vectors"]

WORDS = {
    "titles": f"mean of the rows of {NEIGHBOURS} items with similar titles, weighted by cosine^{POWER}, "
    "scaled to the median norm",
    "mean": "mean of the rows of all items that are not retired",
    "vectors": "vectors of the file",
}


@dataclass(frozen=True)
class Change:
    """A change of a catalogue.

    Attributes:
        add: items to add, at the end, so that the ids of the others stay.
        retire: items that are never recommended from now on. Their rows stay, for histories that have them.
        restore: retired items that may be recommended again.
        new_rows: the first rows of added items.
    """

    add: ItemFile | None = None
    retire: ItemFile | None = None
    restore: ItemFile | None = None
    new_rows: NewRows = "titles"


def grow(run: SavedRun, path: Path, change: Change) -> tuple[RunFolder, Items]:
    """Make a run folder with the weights of a run and a changed catalogue; the run itself is not changed.

    The folder has config.yaml, protocol.json, items.parquet and a checkpoint of weights alone, under the name
    of the run's. Training resumes in it only as a new run that begins from these weights.

    Args:
        run: the run.
        path: the new folder.
        change: what to change.

    Returns:
        The folder, and its items.

    Raises:
        DataError: an item is unknown, known already, or has no usable first row, or no item is left.
        RunError: the folder exists or cannot be written; then none is left.
    """
    if path.exists():
        raise RunError(f"{path}: exists, and runs are never overwritten; choose another folder")
    items = changed_items(run.read_items(), change)
    model = _grown_model(run, items, change)
    content = run.folder.read_protocol()
    entry = _record(run, items, change)
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"cannot create the run folder {path}: {error.strerror}") from error
    folder = RunFolder(path)
    try:
        with owned(path):
            checkpoint.save(folder.checkpoint_path(run.which), model, run.state.as_dict())
            write_items(folder.items_path, items)
            atomic_write_text(folder.config_path, run.config.to_yaml())
            # The last file, so that a folder of a killed process is not a run.
            folder.write_json(folder.protocol_path, content | {"growth": [*content.get("growth", []), entry]})
    except BaseException:
        shutil.rmtree(path)
        raise
    return folder, items


def changed_items(items: Items, change: Change) -> Items:
    """The items after a change. Raises DataError if it is not possible, or no item would be left."""
    known = {token: item for item, token in enumerate(items.tokens) if item > 0}
    retired = items.retired.copy()
    for file, value in ((change.retire, True), (change.restore, False)):
        for token in file.tokens if file is not None else ():
            assert file is not None
            if token not in known:
                raise DataError(
                    f"{file.name}: item {token!r} is not among the run's {len(known)} items"
                    f"{near_miss(token, known)}"
                )
            if items.retired[known[token]] == value:
                raise DataError(f"{file.name}: item {token!r} is {'already' if value else 'not'} retired")
            retired[known[token]] = value
    if change.add is None:
        if change.retire is not None and retired[1:].all():
            raise DataError(
                f"{change.retire.name}: retires all items that are left, and nothing could be recommended; "
                "keep one, or add items in the same change"
            )
        return Items(items.tokens, items.titles, retired)
    for token in change.add.tokens:
        if token in known:
            fix = "; it is retired, and --restore brings it back" * bool(items.retired[known[token]])
            raise DataError(
                f"{change.add.name}: item {token!r} is already among the run's {len(known)} items{fix}"
            )
    tokens, titles = items.tokens + change.add.tokens, items.titles + change.add.titles
    return Items(tokens, titles, np.concatenate((retired, np.zeros(len(change.add.tokens), dtype=bool))))


def _grown_model(run: SavedRun, items: Items, change: Change) -> SequenceModel:
    before, total = run.model.n_items, len(items.tokens)
    model = build(run.config.model, total, run.model.max_len).to(run.device)
    rows = np.arange(total)
    transfer(run.model, model, np.where(rows < before, rows, -1))
    if change.add is None:
        return model
    new, known, vectors = rows[before:], rows[1:before], change.add.vectors
    try:
        if change.new_rows != "vectors":
            if vectors is not None:
                raise DataError(f"has vectors, which --init {change.new_rows} does not use; remove them")
            fill_rows(model, items, new, known, change.new_rows)
        elif vectors is None:
            raise DataError("no vectors, in a column 'vector' or in a .npy or .safetensors file beside it")
        else:
            set_vectors(model, items, new, known, torch.from_numpy(vectors))
    except DataError as error:
        raise DataError(f"{change.add.name}: {error}") from error
    return model


def _record(run: SavedRun, items: Items, change: Change) -> dict[str, Any]:
    """An entry of the list "growth" of protocol.json. Counts of items include the padding id."""
    files = {"added": change.add, "retired": change.retire, "restored": change.restore}
    return {
        "time": now(),
        "recgrela": _C.version,
        "parent": run.parent_record(),
        **{
            key: {"items": len(file.tokens), "file": file.name, "sha256": file.sha256}
            for key, file in files.items()
            if file is not None
        },
        "new_rows": WORDS[change.new_rows] if change.add is not None else None,
        "items": len(items.tokens),
        "ids_sha256": ids_sha256(items.tokens),
        "retired_items": int(items.retired.sum()),
    }


def growth_notes(folder: RunFolder) -> Sequence[str]:
    """Lines to print below a table of a run whose catalogue was changed."""
    if not folder.read_protocol().get("growth", []):
        return []
    total = recorded_items(folder)
    added = total - recorded_data(folder)["items"]
    retired = int(read_items(folder.items_path, total, recorded_ids(folder)).retired.sum())
    return [
        f"note: all items are ranked, also {added} that were added after training and are no targets, and "
        f"{retired} that are retired and never recommended"
    ]
