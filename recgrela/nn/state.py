"""State that a model carries from one part of a sequence to the next, and modules that have one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

if TYPE_CHECKING:
    from recgrela.nn.sequences import Sequences

PackedDtype = Literal["float32", "bfloat16"]


class Stateful:
    """A module that mixes positions causally and can resume a sequence from a state.

    Attributes:
        state_prefix: the prefix of the module's tensors in a `ModelState`; the model sets it.
    """

    state_prefix: str = ""

    def init_state(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """The state before the first row of `batch` sequences, by name; each tensor is [batch, ...].

        Args:
            batch: the number of sequences.
            like: a tensor with the dtype and device of the rows.
        """
        raise NotImplementedError

    def carried(self, sequences: Sequences) -> dict[str, Tensor] | None:
        """The module's tensors in the state of `sequences`, to be updated in place; None without a state."""
        if sequences.state is None:
            return None
        begin = len(self.state_prefix)
        return {
            name[begin:]: tensor
            for name, tensor in sequences.state.items()
            if name.startswith(self.state_prefix)
        }


class ModelState(Mapping[str, Tensor]):
    """The state of a model after the items that each of B users has had so far.

    A model creates it (`SequenceModel.init_state`) and updates its tensors in place. All tensors have one row
    for each user. Every state has "position", [B] int64, the number of items so far, and "hidden", [B, D],
    the hidden state after the last item, from which `SequenceModel.scores` computes scores.

    Args:
        tensors: tensors [B, ...] by name, on one device.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def batch(self) -> int:
        """B, the number of users."""
        return self["position"].shape[0]

    @property
    def device(self) -> torch.device:
        return self["position"].device

    def _map(self, function: Callable[[Tensor], Tensor]) -> ModelState:
        return ModelState({name: function(tensor) for name, tensor in self.items()})

    def to(self, device: torch.device | str) -> ModelState:
        """The state on `device`, without a copy if it is there already."""
        return self._map(lambda tensor: tensor.to(device))

    def clone(self) -> ModelState:
        """A copy."""
        return self._map(Tensor.clone)

    def select(self, rows: Tensor | Sequence[int]) -> ModelState:
        """A copy of some users' states; `rows` are indices of users, or a mask [B] of bool."""
        index = self._index(rows)
        return self._map(lambda tensor: tensor.index_select(0, index))

    def assign(self, rows: Tensor | Sequence[int], other: ModelState) -> None:
        """Overwrites the states of some users by the rows of `other`; `rows` are distinct, as in `select`."""
        index = self._index(rows)
        for name, tensor in self.items():
            tensor.index_copy_(0, index, other[name])

    def _index(self, rows: Tensor | Sequence[int]) -> Tensor:
        index = torch.as_tensor(rows, device=self.device)
        if index.dtype != torch.bool:
            return index.to(torch.int64)
        if index.shape != (self.batch,):
            raise ValueError(f"a mask of states must be [{self.batch}], got {tuple(index.shape)}")
        return index.nonzero()[:, 0]

    @staticmethod
    def cat(states: Iterable[ModelState]) -> ModelState:
        """The users of several states of one model, one after the other; at least one state."""
        parts = list(states)
        return ModelState({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    # ---- bytes

    def num_bytes(self, dtype: PackedDtype = "float32") -> int:
        """The number of bytes of a user that `pack` returns."""
        return sum(part.shape[1] for part in (_to_bytes(t[:0], dtype) for t in self._tensors.values()))

    def pack(self, dtype: PackedDtype = "float32") -> Tensor:
        """The states as bytes, uint8 [B, num_bytes(dtype)], on the CPU.

        Args:
            dtype: "float32" keeps the values of a float32 model. "bfloat16" halves the size; it rounds up or
                down at random with probabilities that keep the mean, because a running sum that is rounded
                to the nearest value after each item would stop growing after a few hundred items.
        """
        if dtype not in get_args(PackedDtype):
            raise ValueError(f"dtype must be one of {', '.join(get_args(PackedDtype))}, got {dtype!r}")
        return torch.cat([_to_bytes(tensor, dtype) for tensor in self._tensors.values()], dim=1).cpu()

    def unpack(self, data: Tensor, dtype: PackedDtype = "float32") -> ModelState:
        """The inverse of `pack`, for bytes of a model with the same tensors as this state.

        Args:
            data: uint8 [B, num_bytes(dtype)].
            dtype: the dtype given to `pack`.

        Raises:
            ValueError: the number of bytes is not that of a state of this model.
        """
        expected = self.num_bytes(dtype)
        if data.dim() != 2 or data.shape[1] != expected or data.dtype != torch.uint8:
            raise ValueError(
                f"a {dtype} state of this model has {expected} bytes a user; got {data.dtype} "
                f"{tuple(data.shape)}"
            )
        tensors, begin = {}, 0
        for name, like in self.items():
            width = _to_bytes(like[:0], dtype).shape[1]
            tensors[name] = _from_bytes(data[:, begin : begin + width], like, dtype)
            begin += width
        return ModelState(tensors)


def _to_bytes(tensor: Tensor, dtype: PackedDtype) -> Tensor:
    """[B, ...] -> uint8 [B, bytes]; numbers of items and positions are never rounded."""
    rows = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    rows = rows.reshape(rows.shape[0], rows[:1].numel() if rows.shape[0] else _row_size(rows))
    if rows.is_floating_point():
        rows = round_at_random(rows.float()) if dtype == "bfloat16" else rows.float()
    return rows.contiguous().view(torch.uint8)


def _row_size(tensor: Tensor) -> int:
    size = 1
    for extent in tensor.shape[1:]:
        size *= extent
    return size


def _from_bytes(data: Tensor, like: Tensor, dtype: PackedDtype) -> Tensor:
    """The inverse of `_to_bytes`, with the dtype, device and row shape of `like`."""
    is_float = like.is_floating_point() or like.is_complex()
    stored = (torch.bfloat16 if dtype == "bfloat16" else torch.float32) if is_float else like.dtype
    # A copy begins at an aligned address, which a part of a user's bytes need not do.
    rows = data.clone(memory_format=torch.contiguous_format).view(stored)
    if like.is_complex():
        real = torch.float64 if like.dtype == torch.complex128 else torch.float32
        rows = torch.view_as_complex(rows.to(real).unflatten(1, (-1, 2)))
    return rows.to(like.device, like.dtype).reshape(data.shape[0], *like.shape[1:])


def round_at_random(x: Tensor) -> Tensor:
    """float32 -> bfloat16, up or down with probabilities that keep the mean (stochastic rounding)."""
    noise = torch.randint_like(x, 1 << 16, dtype=torch.int32)
    # The upper 16 bits of a float32 are the bfloat16; a carry out of the lower ones rounds away from zero.
    bits = (x.view(torch.int32) + noise) & -(1 << 16)
    rounded = bits.view(torch.float32)
    return torch.where(torch.isfinite(x) & torch.isfinite(rounded), rounded, x).to(torch.bfloat16)
