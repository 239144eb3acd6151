"""Windows: ranges of the packed items, chosen on the host, and the batches that are gathered from them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from recgrela.data.batch import Batch, to_device
from recgrela.settings.train import Objective


class Windows(NamedTuple):
    """Ranges of the packed items, on the host. The target of a window is the item after it.

    Attributes:
        users: [B] int64 user rows.
        starts: [B] int64 positions in `Interactions.items`.
        lengths: [B] int64, at least 1.
    """

    users: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @property
    def num_items(self) -> int:
        """The number of items of all windows."""
        return int(self.lengths.sum())

    def take(self, rows: np.ndarray | slice) -> Windows:
        """Some of the windows."""
        return Windows(*(column[rows] for column in self))

    def cut_at(self, places: np.ndarray) -> Windows:
        """The same windows with additional cuts; a place [C] int64 counts the items of all windows."""
        ends = np.cumsum(self.lengths)
        begins = ends - self.lengths
        inside = places[(places > 0) & (places < self.num_items)]
        pieces = np.union1d(begins, inside)  # the start of each piece
        rows = np.searchsorted(begins, pieces, side="right") - 1
        starts = self.starts[rows] + pieces - begins[rows]
        return Windows(self.users[rows], starts, np.diff(pieces, append=ends[-1:]))


def gather(
    items: torch.Tensor, windows: Windows, objective: Objective, step: int, global_targets: int = -1
) -> Batch:
    """The batch of some windows of the packed items, on their device."""
    size = windows.users.size
    offsets = np.concatenate(([0], np.cumsum(windows.lengths)))
    tokens, longest = int(offsets[-1]), int(windows.lengths.max(initial=0))
    plan = to_device(np.concatenate((windows.users, windows.starts, offsets)), items.device)
    users, starts, cu_seqlens = plan.split((size, size, size + 1))  # [B], [B], [B + 1]
    lengths = cu_seqlens.diff()
    shift = (starts - cu_seqlens[:-1]).repeat_interleave(lengths, output_size=tokens)  # [T]
    where = shift + torch.arange(tokens, device=items.device)
    target = (items[where + 1] if objective == "all" else items[starts + lengths]).long()
    return Batch(
        objective, items[where].long(), cu_seqlens, longest, target, users, offsets, step, global_targets
    )
