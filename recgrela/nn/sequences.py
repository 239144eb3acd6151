"""How packed rows fall into sequences, and the dense form that some modules need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """How packed rows [T, ...] fall into B sequences.

    Attributes:
        cu_seqlens: [B + 1] int64, sequence b is rows cu_seqlens[b] .. cu_seqlens[b + 1].
        index: [T] int64, the sequence of each row.
        max_seqlen: the longest sequence, known on the host.
        lengths: [B] int64, how many of a sequence's rows are items where the rest is padding; None: all.
    """

    cu_seqlens: Tensor
    index: Tensor
    max_seqlen: int
    lengths: Tensor | None = None

    @staticmethod
    def of(cu_seqlens: Tensor, num_rows: int, max_seqlen: int, lengths: Tensor | None = None) -> Sequences:
        """Of sequences without padding, or (with `lengths`) of padded ones."""
        cu_seqlens = cu_seqlens.to(torch.int64)
        batch = torch.arange(cu_seqlens.shape[0] - 1, device=cu_seqlens.device)
        index = torch.repeat_interleave(batch, cu_seqlens.diff(), output_size=num_rows)
        return Sequences(cu_seqlens, index, max_seqlen, lengths)

    @property
    def batch(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    @property
    def num_rows(self) -> int:
        return self.index.shape[0]

    def positions(self) -> Tensor:
        """[T] int64, the place of each row in its sequence, from 0."""
        rows = torch.arange(self.num_rows, device=self.index.device)
        return rows - self.cu_seqlens[self.index]

    def last(self) -> Tensor:
        """[B] int64, the last row of each sequence that is an item."""
        return self.cu_seqlens[1:] - 1 if self.lengths is None else self.cu_seqlens[:-1] + self.lengths - 1

    def items(self, length: int) -> Tensor:
        """[B, length] bool, which slots of the dense form are items."""
        lengths = self.cu_seqlens.diff() if self.lengths is None else self.lengths
        return torch.arange(length, device=lengths.device) < lengths[:, None]

    def padded(self, length: int) -> tuple[Sequences, Tensor]:
        """The same, each filled up to `length` rows; and where the rows went, [T] int64."""
        cu_seqlens = torch.arange(self.batch + 1, device=self.index.device) * length
        lengths = self.cu_seqlens.diff()
        return Sequences.of(cu_seqlens, self.batch * length, length, lengths), self.places(length)

    def places(self, length: int) -> Tensor:
        """[T] int64, the place of each row in sequences of `length` rows."""
        return self.index * length + self.positions()

    def to_dense(self, x: Tensor, length: int | None = None) -> Tensor:
        """Rows x [T, ...] -> [B, L, ...] with zeros behind each sequence; L the longest or `length`."""
        length = self.max_seqlen if length is None else length
        shape = (self.batch, length, *x.shape[1:])
        if x.shape[0] == self.batch * length:  # nothing to fill
            return x.reshape(shape)
        dense = x.new_zeros(self.batch * length, *x.shape[1:])
        return dense.index_copy(0, self.places(length), x).view(shape)

    def to_rows(self, dense: Tensor) -> Tensor:
        """[B, L, ...] -> [T, ...], what `to_dense` had from the rows."""
        batch, length, *rest = dense.shape
        flat = dense.reshape(batch * length, *rest)
        return flat if len(flat) == self.num_rows else flat[self.places(length)]

    def reversed_rows(self, most: int | None = None) -> Tensor:
        """[T] int64: taken in this order, rows run backward in each sequence, or in its first `most` rows."""
        positions = self.positions()
        sizes, starts = self.cu_seqlens.diff()[self.index], self.cu_seqlens[self.index]
        turned = sizes if most is None else sizes.clamp(max=most)
        return starts + torch.where(positions < turned, turned - 1 - positions, positions)
