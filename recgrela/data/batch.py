"""One batch of packed sequences."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from recgrela.settings.train import Objective


@dataclass(frozen=True)
class Batch:
    """B sequences end to end. Tensors are on the training device, the rest is on the host.

    With several processes, a batch is the share of one of them, which may be empty.

    Attributes:
        objective: "last" (also in evaluation) or "all"; says which items `target` holds.
        items: [T] int64 item ids.
        cu_seqlens: [B + 1] int64; sequence b is ``items[cu_seqlens[b]:cu_seqlens[b + 1]]``.
        max_seqlen: the length of the longest sequence.
        target: int64 item ids to predict: [B], the item after each sequence (objective "last"), or [T], the
            item after every item (objective "all").
        users: [B] int64 user rows.
        offsets: [B + 1] int64, a copy of cu_seqlens on the host.
        step: the number of the batch in its epoch.
        global_targets: the number of targets of the batch on all processes; by default, of this batch.
    """

    objective: Objective
    items: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    target: torch.Tensor
    users: torch.Tensor
    offsets: np.ndarray
    step: int = 0
    global_targets: int = -1

    def __post_init__(self) -> None:
        if self.global_targets < 0:
            object.__setattr__(self, "global_targets", self.target.numel())  # the class is frozen

    @property
    def size(self) -> int:
        """B, the number of sequences."""
        return self.users.numel()

    @property
    def num_tokens(self) -> int:
        """T, the number of items."""
        return self.items.numel()

    def parts(self, max_slots: int, slots: Callable[[np.ndarray], int]) -> Iterator[Batch]:
        """Cuts the batch between sequences into parts that fit into one pass over a model.

        Args:
            max_slots: the largest number of slots in a part; a part of one sequence may have more.
            slots: the number of slots that sequences of given lengths [B] take together; see
                `SequenceModel.slots`.
        """
        lengths, first = np.diff(self.offsets), 0
        while first < self.size:
            last = first + max(_fitting(lengths[first:], max_slots, slots), 1)
            yield self if (first, last) == (0, self.size) else self._slice(first, last)
            first = last

    def _slice(self, first: int, last: int) -> Batch:
        """The sequences first .. last - 1 as a batch."""
        begin, end = int(self.offsets[first]), int(self.offsets[last])
        return Batch(
            self.objective,
            self.items[begin:end],
            self.cu_seqlens[first : last + 1] - begin,
            int(np.diff(self.offsets[first : last + 1]).max()),
            self.target[first:last] if self.objective == "last" else self.target[begin:end],
            self.users[first:last],
            self.offsets[first : last + 1] - begin,
            self.step,
            self.global_targets,
        )


def to_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copies an array to a device; the host does not wait for a GPU."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _fitting(lengths: np.ndarray, max_slots: int, slots: Callable[[np.ndarray], int]) -> int:
    """The largest number of leading sequences that take at most `max_slots`, by bisection."""
    return bisect_right(range(1, len(lengths) + 1), max_slots, key=lambda count: slots(lengths[:count]))
