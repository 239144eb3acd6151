"""What the CUDA graph of a pass over a model needs: batches of few sizes, and no operation that waits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from recgrela.data import Batch
from recgrela.data.batch import to_device
from recgrela.data.filling import Filling
from recgrela.models.base import SequenceModel
from recgrela.parallel.table import ShardedTable
from recgrela.settings.train import Objective
from recgrela.system.host_reads import host_read

SHARDED = "the item table is sharded, so that hosts wait for the numbers of rows that they exchange"


def filling_for(model: SequenceModel, objective: Objective, max_seqlen: int) -> Filling:
    """How batches for a model are filled; `max_seqlen` is the length of their longest sequence."""
    pads = model.attends_to_padding and objective == "last"
    return Filling(objective, max_seqlen, model.slots, model.max_len if pads else None)


def max_slots(model: SequenceModel, objective: Objective, batch_size: int, max_seqlen: int) -> int:
    """The largest number of slots that a batch of `batch_size` targets takes in one pass, not filled."""
    if objective == "last":
        lengths = np.full(batch_size, max_seqlen)
    else:
        lengths = np.append(np.ones(max(batch_size - max_seqlen, 0), np.int64), min(max_seqlen, batch_size))
    return model.slots(lengths)


def small_batch(model: SequenceModel, objective: Objective, max_seqlen: int) -> Batch:
    """A batch of one sequence of at most two items, on the device of a model."""
    device = model.item_embedding.weight.device
    offsets = np.array([0, min(2, max_seqlen)])
    items = torch.ones(int(offsets[1]), dtype=torch.int64, device=device)
    target = items if objective == "all" else items[:1]
    users = torch.zeros(1, dtype=torch.int64, device=device)
    return Batch(objective, items, to_device(offsets, device), max_seqlen, target, users, offsets)


def capture_obstacle(model: SequenceModel, function: Callable[[], object]) -> str | None:
    """Why a CUDA graph cannot hold a function that runs a model, or None. It runs twice to find out."""
    name = model.config.name
    if model.capture_obstacle is not None:
        return f"{name}: {model.capture_obstacle}"
    if isinstance(model.item_embedding, ShardedTable):
        return SHARDED
    if (found := host_read(function, model.item_embedding.weight.device.type)) is not None:
        return f"this {name} waits for the device ({found}); ops do for sizes without a kernel (docs/ops.md)"
    return None
