"""Finds the operations of a function that a CUDA graph cannot capture, on any device."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = Path(__file__).parents[1]

aten = torch.ops.aten
# Operations whose result or its shape depends on values, so that the host waits for the device.
READS = {
    aten._local_scalar_dense,  # item(), tolist(), bool(), int(), float()
    aten.bincount,
    aten.equal,
    aten.masked_select,
    aten.nonzero,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}


class _HostReads(TorchDispatchMode):
    """Records the operations that wait for a device or copy between it and the host. Runs them as usual.

    Args:
        device: the type of the device.

    Attributes:
        found: descriptions, such as "aten.nonzero in models/mine.py, line 12".
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.found: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operator = func.overloadpacket
        if self._reads(operator, args, kwargs) or _crosses_devices(operator, args, result):
            self.found.append(f"{operator}{_place()}")
        return result

    def _reads(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the host waits for the result, or for its shape."""
        if all(x.device.type != self.device for x in _tensors(args)):
            return False
        if operator in INDEXING:
            return any(x.dtype in (torch.bool, torch.uint8) for x in _tensors(args[1]))
        if operator is aten.repeat_interleave:
            return kwargs.get("output_size") is None
        return operator in READS


class _HostValues(TorchFunctionMode):
    """Records to `found` the calls that make a tensor on a device from values of the host."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor) and not _is_host(result):
            self.found.append(f"{func.__name__}{_place()}")
        return result


def host_read(function: Callable[[], object], device: str) -> str | None:
    """The first operation of a function that a CUDA graph cannot capture, or None. Runs the function twice.

    The first time may copy from the host, for tables that are kept. PyTorch's random number generators keep
    their states.

    Args:
        function: a function of tensors on a device.
        device: the type of that device; the CPU too.

    Returns:
        The operation and its place, such as "aten.nonzero in models/mine.py, line 12".
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        function()
        with _HostReads(device) as mode, _HostValues(mode.found):
            function()
    return mode.found[0] if mode.found else None


def _crosses_devices(operator: Any, args: tuple[Any, ...], result: Any) -> bool:
    """Whether an operation copies tensors between the host and a device. Host scalars become arguments."""
    if operator not in (aten._to_copy, aten.copy_, aten.copy, aten._copy_from):
        return False
    ends = [*_tensors(args), *_tensors([result])]
    return any(map(_is_host, ends)) and not all(map(_is_host, ends))


def _is_host(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    return (x for x in values if isinstance(x, Tensor))


def _place() -> str:
    """The innermost line of this package below the caller, " in models/mine.py, line 12"; empty if none."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(PACKAGE) and path != Path(__file__):
            return f" in {path.relative_to(PACKAGE)}, line {frame.lineno}"
    return ""
