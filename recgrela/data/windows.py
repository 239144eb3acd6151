"""Windows: ranges of the packed items, chosen on the host, and the batches that are gathered from them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch

from recgrela.data.batch import Batch, to_device
from recgrela.data.mapped import MappedArray
from recgrela.settings.train import Objective


class Windows(NamedTuple):
    """Ranges of the packed items, on the host. The target of a window is the item after it.

    Attributes:
        users: [B] int64 user rows.
        starts: [B] int64 positions in `Interactions.items`.
        lengths: [B] int64; batches for models have no empty windows.
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

    def slice(self, begin: int, end: int) -> Windows:
        """The windows of the items begin .. end - 1, counted over all windows; the outer ones may be cut."""
        if begin >= end:
            return self.take(slice(0))
        ends = np.cumsum(self.lengths)
        first, last = np.searchsorted(ends, (begin, end - 1), side="right")
        starts, lengths = self.starts[first : last + 1].copy(), self.lengths[first : last + 1].copy()
        cut = begin - (ends[first] - lengths[0])
        starts[0] += cut
        lengths[0] -= cut
        lengths[-1] -= ends[last] - end
        return Windows(self.users[first : last + 1], starts, lengths)


class ItemSource(Protocol):
    """Packed items that windows are gathered from."""

    def locate(self, windows: Windows) -> tuple[torch.Tensor, np.ndarray]:
        """A tensor on the device of the batches, and where windows begin in it, [B] int64.

        The tensor [N] has the items of every window and the item after it.
        """
        ...


class DeviceItems:
    """All items on a device. Args: items: [n_events] int32."""

    def __init__(self, items: torch.Tensor) -> None:
        self._items = items

    def locate(self, windows: Windows) -> tuple[torch.Tensor, np.ndarray]:
        """See `ItemSource`."""
        return self._items, windows.starts


class MappedItems:
    """Items in a file, of which only those of windows are read and copied to a device.

    Args:
        items: [n_events] int32.
        device: the device of the batches.
    """

    def __init__(self, items: MappedArray, device: torch.device) -> None:
        self._items, self._device = items, device

    def locate(self, windows: Windows) -> tuple[torch.Tensor, np.ndarray]:
        """See `ItemSource`."""
        lengths = windows.lengths + 1  # with the target
        found = to_device(self._items.ranges(windows.starts, lengths), self._device)
        return found, np.cumsum(lengths) - lengths


def gather(
    source: ItemSource, windows: Windows, objective: Objective, step: int, global_targets: int = -1
) -> Batch:
    """The batch of some windows of the packed items, on the device of the source."""
    size = windows.users.size
    items, begins = source.locate(windows)
    offsets = np.concatenate(([0], np.cumsum(windows.lengths)))
    tokens, longest = int(offsets[-1]), int(windows.lengths.max(initial=0))
    plan = to_device(np.concatenate((windows.users, begins, offsets)), items.device)
    users, starts, cu_seqlens = plan.split((size, size, size + 1))  # [B], [B], [B + 1]
    lengths = cu_seqlens.diff()
    shift = (starts - cu_seqlens[:-1]).repeat_interleave(lengths, output_size=tokens)  # [T]
    where = shift + torch.arange(tokens, device=items.device)
    target = (items[where + 1] if objective == "all" else items[starts + lengths]).long()
    return Batch(
        objective, items[where].long(), cu_seqlens, longest, target, users, offsets, step, global_targets
    )
