"""Copies the weights of a model to one with other items."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from recgrela.models.base import PER_ITEM, SequenceModel
from recgrela.parallel.table import ShardedTable
from recgrela.settings.fields import show
from recgrela.system.errors import ConfigError

# Endings of settings that only training reads, so that the weights do not depend on them.
RATES = ("dropout", "drop_path")


def per_item(model: SequenceModel) -> dict[str, Tensor]:
    """The parameters [n_items, ...] of a model with a row for each item, by name; they share its memory."""
    state = model.state_dict()
    return {name: state[name] for name in PER_ITEM if name in state}


@torch.no_grad()
def transfer(source: SequenceModel, target: SequenceModel, rows: np.ndarray) -> None:
    """Copy the weights of `source` to `target`.

    Args:
        source, target: models with the same settings, except rates of dropout. `max_len` may differ if no
            parameter depends on it.
        rows: [target.n_items] int64, the item of `source` whose rows an item of `target` gets; -1: it keeps
            its own. The item table of `target` may be sharded, that of `source` not.

    Raises:
        ConfigError: a setting or the shape of a parameter differs; nothing is changed.
    """
    theirs, ours = asdict(source.config), asdict(target.config)
    for key in ours:
        if not key.endswith(RATES) and theirs.get(key) != ours[key]:
            raise ConfigError(
                f"model.{key}: {show(ours[key])}, but the weights are of a model with {show(theirs.get(key))}"
            )
    before, after = source.state_dict(), target.state_dict()
    for name, value in after.items():
        first = 1 if name in PER_ITEM else 0
        if before[name].shape[first:] != value.shape[first:]:
            raise ConfigError(
                f"data.max_len: {target.max_len} does not fit the weights of a model with {source.max_len}: "
                f"{name} is {list(value.shape)} here and {list(before[name].shape)} there"
            )
    if isinstance(target.item_embedding, ShardedTable):
        rows = rows[target.item_embedding.rows.slice]
    kept = torch.from_numpy(rows >= 0)
    chosen = torch.from_numpy(rows[rows >= 0])
    for name, value in after.items():
        if name in PER_ITEM:
            value[kept.to(value.device)] = before[name].to(value)[chosen.to(value.device)]
        else:
            value.copy_(before[name])
