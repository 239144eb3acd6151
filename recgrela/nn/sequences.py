"""How packed rows split into sequences, which rows are wanted, and conversion to a dense form and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from recgrela.ops.dropout import new_seeds


class SeedStream:
    """Seeds of the dropouts of one forward pass, which are drawn together, since each draw is a kernel.

    Args:
        device: the device of the seeds.
    """

    DRAW = 64

    def __init__(self, device: torch.device) -> None:
        self._device, self._used = device, 0
        self._drawn: Tensor | None = None

    def take(self, count: int) -> Tensor:
        """The next `count` seeds, [count] int64."""
        if self._drawn is None or self._used + count > self.DRAW:
            self._drawn, self._used = new_seeds(self.DRAW, self._device), 0
        begin, self._used = self._used, self._used + count
        return self._drawn[begin : self._used]


class _SelectRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.num_rows = x.shape[0]
        ctx.save_for_backward(rows)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return d_y.new_zeros(ctx.num_rows, *d_y.shape[1:]).index_add_(0, rows, d_y), None


def select_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x [T, ...] at distinct rows [B] int64 -> [B, ...].

    The gradient is written once, where that of `x[rows]` sorts the rows and that of `index_select` copies the
    zeros. It is the same on every run, because no two rows are added.
    """
    selected: Tensor = _SelectRows.apply(x, rows)
    return selected


@dataclass(frozen=True)
class Sequences:
    """How packed rows [T, ...] split into B sequences.

    Indices of rows are computed when they are first needed, since on a GPU each takes several kernels. Copies
    with other `wanted` rows share them.

    Attributes:
        cu_seqlens: [B + 1] int64; sequence b is rows cu_seqlens[b] : cu_seqlens[b + 1].
        num_rows: T.
        max_seqlen: the length of the longest sequence, known on the host.
        lengths: [B] int64, the number of items at the start of each sequence; the rows after them are
            padding. None: every row is an item.
        wanted: [B] int64, one row of each sequence: the rows that the next module returns. None: all rows.
        stream: the seeds of the forward pass; None: each dropout draws its own.
        fillers: the number of sequences at the end that only fill the batch up; a loss ignores their rows.
        state: the state after earlier rows of the sequences, which modules update in place (see
            `recgrela.nn.state`). None: the sequences begin here and no state is needed.
        max_position: the largest number of rows of a sequence, earlier rows included, known on the host; of
            use with a state only.
    """

    cu_seqlens: Tensor
    num_rows: int
    max_seqlen: int
    lengths: Tensor | None = None
    wanted: Tensor | None = None
    stream: SeedStream | None = None
    fillers: int = 0
    state: Mapping[str, Tensor] | None = None
    max_position: int = 0
    _made: dict[str, tuple[int | None, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(cu_seqlens: Tensor, num_rows: int, max_seqlen: int, lengths: Tensor | None = None) -> Sequences:
        """Makes sequences from their offsets. See the class for the arguments."""
        return Sequences(cu_seqlens.to(torch.int64), num_rows, max_seqlen, lengths)

    def _once(self, name: str, make: Callable[[], Tensor], size: int | None = None) -> Tensor:
        """The result of `make`, which is called again only for another size."""
        if name not in self._made or self._made[name][0] != size:
            self._made[name] = size, make()
        return self._made[name][1]

    @property
    def batch(self) -> int:
        """B, the number of sequences."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def has_equal_lengths(self) -> bool:
        """Whether every sequence is known to have `max_seqlen` rows."""
        return self.num_rows == self.batch * self.max_seqlen

    @property
    def is_step(self) -> bool:
        """Whether each sequence has one row, which follows a state."""
        return self.state is not None and self.max_seqlen == 1 and self.has_equal_lengths

    # ---- the rows that a module returns

    def with_wanted(self, rows: Tensor | None) -> Sequences:
        """The same sequences with other `wanted` rows."""
        return self if rows is self.wanted else replace(self, wanted=rows)

    def last_only(self) -> Sequences:
        """The same sequences, with only their last items wanted."""
        return self.with_wanted(self.last_items())

    def select(self, x: Tensor) -> Tensor:
        """x [T, ...] -> its wanted rows: [B, ...], or x itself when all rows are wanted."""
        return x if self.wanted is None else select_rows(x, self.wanted)

    # ---- randomness

    def seeds(self, count: int) -> Tensor | None:
        """Seeds for dropouts, [count] int64, or None if each op is to draw its own."""
        return None if self.stream is None else self.stream.take(count)

    # ---- positions of rows

    @property
    def index(self) -> Tensor:
        """[T] int64, the sequence of each row."""
        return self._once("index", self._find_index)

    def positions(self) -> Tensor:
        """[T] int64, the position of each row in its sequence, from 0."""
        return self._once("positions", self._find_positions)

    def last_items(self) -> Tensor:
        """[B] int64, the row of the last item of each sequence."""
        return self.cu_seqlens[1:] - 1 if self.lengths is None else self.cu_seqlens[:-1] + self.lengths - 1

    def _rows(self) -> Tensor:
        return self._once("rows", lambda: torch.arange(self.num_rows, device=self.cu_seqlens.device))

    def _find_index(self) -> Tensor:
        if self.has_equal_lengths:
            batch = torch.arange(self.batch, device=self.cu_seqlens.device)
            return batch[:, None].expand(-1, self.max_seqlen).reshape(-1)
        if self.cu_seqlens.device.type == "cpu":
            batch = torch.arange(self.batch, device="cpu")
            return torch.repeat_interleave(batch, self.cu_seqlens.diff(), output_size=self.num_rows)
        return search_index(self._rows(), self.cu_seqlens)

    def _find_positions(self) -> Tensor:
        if self.has_equal_lengths:
            return self._rows() % self.max_seqlen
        return self._rows() - self.cu_seqlens[self.index]

    def reversed_rows(self, limit: int | None = None) -> Tensor:
        """The permutation [T] int64 that reverses each sequence, or only its first `limit` rows.

        The permutation is its own inverse: x[rows][rows] is x.
        """
        return self._once("reversed_rows", lambda: self._reverse(limit), limit)

    def _reverse(self, limit: int | None) -> Tensor:
        positions = self.positions()
        sizes, starts = self.cu_seqlens.diff()[self.index], self.cu_seqlens[self.index]
        reversed_sizes = sizes if limit is None else sizes.clamp(max=limit)
        return starts + torch.where(positions < reversed_sizes, reversed_sizes - 1 - positions, positions)

    # ---- padding and the dense form

    def padded(self, length: int) -> tuple[Sequences, Tensor]:
        """Pads each sequence to `length` rows.

        Returns:
            The padded sequences, and the row of each item in them, [T] int64.
        """
        cu_seqlens = torch.arange(self.batch + 1, device=self.cu_seqlens.device) * length
        padded = Sequences.of(cu_seqlens, self.batch * length, length, self.cu_seqlens.diff())
        padded = replace(padded, stream=self.stream, fillers=self.fillers)
        return padded, self.dense_rows(length)

    def dense_rows(self, length: int) -> Tensor:
        """[T] int64, the index of each row in the flattened dense form [B * length, ...]."""
        return self._once("dense_rows", lambda: self.index * length + self.positions(), length)

    def item_mask(self, length: int) -> Tensor:
        """[B, length] bool, True for the slots of the dense form that hold items."""
        return self._once("item_mask", lambda: self._find_items(length), length)

    def _find_items(self, length: int) -> Tensor:
        lengths = self.cu_seqlens.diff() if self.lengths is None else self.lengths
        return torch.arange(length, device=lengths.device) < lengths[:, None]

    def to_dense(self, x: Tensor, length: int | None = None) -> Tensor:
        """Packed x [T, ...] -> [B, L, ...], zero after each sequence; L is `length` or `max_seqlen`."""
        length = self.max_seqlen if length is None else length
        shape = (self.batch, length, *x.shape[1:])
        if x.shape[0] == self.batch * length:  # nothing to fill
            return x.reshape(shape)
        dense = x.new_zeros(self.batch * length, *x.shape[1:])
        return dense.index_copy(0, self.dense_rows(length), x).view(shape)

    def to_packed(self, dense: Tensor) -> Tensor:
        """[B, L, ...] -> [T, ...], the inverse of `to_dense`."""
        batch, length, *rest = dense.shape
        flat = dense.reshape(batch * length, *rest)
        return flat if flat.shape[0] == self.num_rows else flat[self.dense_rows(length)]


def search_index(rows: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The sequence of each row, by a search in the offsets: one kernel on a GPU, but slow on a CPU."""
    return torch.bucketize(rows, cu_seqlens[1:], right=True)
