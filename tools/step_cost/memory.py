"""Memory that tensors on a device take, which is known for tensors without data too."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step.

    Attributes:
        resident: parameters, buffers and the state of the optimizer, which stay.
        peak: the most that other tensors take at a time, gradients among them. Workspaces within operators
            are unknown, and so is what the allocator adds.
        operator: the operator whose results reach the peak.
    """

    resident: int
    peak: int
    operator: str

    @property
    def total(self) -> int:
        return self.resident + self.peak


class PeakMemory(TorchDispatchMode):
    """Follows the storages on a device that operators allocate while it is active, until they are freed.

    Args:
        device_type: type of the device.

    Attributes:
        live: bytes that are allocated.
        peak: the most bytes that were allocated at a time.
        operator: the operator whose results reached the peak first.
    """

    def __init__(self, device_type: str = "cuda") -> None:
        super().__init__()
        self.device_type = device_type
        self.live = self.peak = 0
        self.operator = ""
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # A storage that exists before the call is not new, whichever view of it the call returns.
        before = {x.untyped_storage()._cdata for x in _tensors((args, kwargs), self.device_type)}
        out = function(*args, **kwargs or {})
        for x in _tensors(out, self.device_type):
            self._follow(x.untyped_storage(), before)
        if self.live > self.peak:
            self.peak, self.operator = self.live, function._schema.name
        return out

    def _follow(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in before or key in self._known or not size:
            return
        self._known.add(key)
        self.live += size
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.live -= size


def _tensors(values: Any, device_type: str) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor) and x.device.type == device_type]


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of tensors, each counted once."""
    storages = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors}
    return sum(storages.values())
