"""Fills batches up to a few sizes, because a CUDA graph has fixed shapes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from recgrela.data.batch import Batch, to_device
from recgrela.settings.train import Objective

MIN_MULTIPLE = 64  # of rows and of sequences without rows, which cost next to nothing


class Filling:
    """Fills batches of one objective with the same number of targets up to a few sizes.

    Objective "all": batches have one number of items, and get empty sequences. Objective "last": batches
    have one number of sequences, and get sequences of item 0 without targets; or, for a model that attends to
    padding, every sequence is padded to one length and there is one size. Sizes are multiples that add at
    most a sixteenth, or `MIN_MULTIPLE`.

    Args:
        objective: "last" (also for evaluation) or "all".
        max_seqlen: the length of the longest sequence of any batch.
        slots: the number of slots that sequences of given lengths [B] take; see `SequenceModel.slots`.
        padded_length: the length that a model pads sequences to which it attends, for objective "last".

    Attributes:
        max_seqlen: the length of the longest sequence of any filled batch.
    """

    def __init__(
        self,
        objective: Objective,
        max_seqlen: int,
        slots: Callable[[np.ndarray], int],
        padded_length: int | None = None,
    ) -> None:
        self.objective = objective
        self.max_seqlen = max_seqlen if padded_length is None else padded_length
        self._pads = padded_length is not None
        self._rows: tuple[Tensor, Tensor] | None = None
        one = np.array([max_seqlen])
        is_free = slots(one) == slots(np.append(one, 0))  # a sequence without items
        self._multiple = MIN_MULTIPLE if is_free else 1

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        """Fills a batch.

        Returns:
            items [T], cu_seqlens [B + 1], target, and if sequences are padded their lengths [B]: arguments of
            `SequenceModel.loss_packed`.
        """
        if self.objective == "all":
            offsets = np.append(batch.offsets, self._empty(batch))
            return batch.items, to_device(offsets, batch.items.device), batch.target
        if self._pads:
            return self._padded(batch)
        ends = batch.num_tokens + np.cumsum(self._lengths(batch.num_tokens))
        extra = int(ends[-1]) - batch.num_tokens if ends.size else 0
        items = torch.nn.functional.pad(batch.items, (0, extra))
        return items, to_device(np.append(batch.offsets, ends), items.device), batch.target

    def _empty(self, batch: Batch) -> np.ndarray:
        """The offsets of empty sequences after those of a batch."""
        size = _rounded_up(batch.size, _multiple(batch.size, self._multiple))
        return np.full(size - batch.size, batch.num_tokens)

    def _lengths(self, num_items: int) -> np.ndarray:
        """The lengths of sequences, as many for each size, that fill a number of items up to a size."""
        if self.max_seqlen == 1:  # then all batches have as many items as sequences
            return np.zeros(0, np.int64)
        multiple = _multiple(num_items, MIN_MULTIPLE)
        count = -(-(multiple - 1) // (self.max_seqlen - 1))  # for any remainder, with at least an item each
        extra = _rounded_up(num_items + count, multiple) - num_items
        return extra // count + (np.arange(count) < extra % count)

    def _padded(self, batch: Batch) -> tuple[Tensor, ...]:
        cu_seqlens, columns = self._padded_rows(batch.size, batch.items.device)
        lengths = batch.cu_seqlens.diff()
        is_item = columns < lengths[:, None]
        # Padding takes the first item of its sequence, times 0.
        rows = torch.addcmul(batch.cu_seqlens[:-1, None], columns, is_item)
        return (batch.items[rows] * is_item).view(-1), cu_seqlens, batch.target, lengths

    def _padded_rows(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The offsets of padded sequences and the columns of their rows, which most batches share."""
        if self._rows is None or len(self._rows[0]) != size + 1 or self._rows[0].device != device:
            columns = torch.arange(self.max_seqlen, device=device)
            self._rows = torch.arange(size + 1, device=device) * self.max_seqlen, columns
        return self._rows


def _multiple(number: int, least: int) -> int:
    """The power of two that sizes near a number are multiples of, at most a sixteenth of it or `least`."""
    return max(least, 1 << max((number - 1).bit_length() - 5, 0))


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
