"""Hidden states after histories, in passes of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from recgrela.inference.histories import Histories
from recgrela.models import SequenceModel

# Item slots of one pass: on a CPU the tensors of a pass fit into the caches, on a GPU they fill the device.
MAX_SLOTS = {"cpu": 16_384, "cuda": 1 << 19}


@contextmanager
def evaluating(model: SequenceModel) -> Iterator[None]:
    """A context in which a model is in eval mode and no gradients are recorded."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def encode(model: SequenceModel, histories: Histories, history_len: int) -> Tensor:
    """The hidden states after the last `history_len` items of each history, float32 [B, D].

    Args:
        model: a model in eval mode.
        histories: histories, not empty.
        history_len: the longest history that the model is given.
    """
    device = model.item_embedding.weight.device
    width = model.item_embedding.embedding_dim
    hidden = torch.empty(len(histories), width, dtype=torch.float32, device=device)
    lengths = np.minimum(histories.lengths, history_len)
    # Sequences of similar lengths share a pass, because some models pad to the longest.
    order = np.argsort(lengths, kind="stable")
    begin = 0
    while begin < len(order):
        users = order[begin : begin + fitting(model, lengths[order[begin:]], MAX_SLOTS[device.type])]
        rows = [
            histories.items[histories.offsets[u + 1] - lengths[u] : histories.offsets[u + 1]] for u in users
        ]
        items = torch.from_numpy(np.concatenate(rows)).to(device)
        cu_seqlens = torch.from_numpy(np.cumsum([0, *lengths[users]])).to(device)
        states = model.hidden_states(items, cu_seqlens, int(lengths[users].max()), True)
        hidden[torch.from_numpy(users).to(device)] = states.float()
        begin += len(users)
    return hidden


def fitting(model: SequenceModel, lengths: np.ndarray, max_slots: int) -> int:
    """The number of leading sequences that fit into one pass, at least 1."""
    low, high = 1, len(lengths)
    while low < high:
        middle = (low + high + 1) // 2
        if model.slots(lengths[:middle]) <= max_slots:
            low = middle
        else:
            high = middle - 1
    return low
