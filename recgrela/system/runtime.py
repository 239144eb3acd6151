"""Device, threads and stop signals of a run."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch

from recgrela.system.errors import ConfigError
from recgrela.system.gpu import gpu_obstacle
from recgrela.system.suggest import near_miss


def pick_device(name: str) -> torch.device:
    """`find_device`, and a GPU becomes PyTorch's current one, for which memory is taken on it.

    Raises:
        ConfigError: as `find_device`.
    """
    device = find_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # CUDA graphs are captured there
    return device


def find_device(name: str) -> torch.device:
    """ "auto" is the GPU where PyTorch sees one, else the CPU.

    Raises:
        ConfigError: the name is not a device, this machine or build of PyTorch has no such device, or this
            build of recgrela has no kernels for it; a GPU is not passed over in silence.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        hint = near_miss(name.lower().replace("gpu", "cuda"), ["auto", "cpu", "cuda"])
        raise ConfigError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N{hint}")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise ConfigError(f"device {name!r}: the number of CUDA devices that PyTorch sees is {count}")
        if obstacle := gpu_obstacle(int(index or 0)):
            raise ConfigError(f"device {name!r}: {obstacle}; or take the device cpu")
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """What `protocol.json` calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


class Stopped(Exception):
    """A stop signal arrived and a safe point was reached."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals:
    """Turns SIGINT and SIGTERM into `Stopped`, raised by `check` at the next safe point.

    The first signal restores the usual handling, so a second one ends the process at once: the checkpoint on
    the disk is whole either way. Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def check(self) -> None:
        """Raise `Stopped` when a signal has arrived."""
        if self._received is not None:
            raise Stopped(self._received)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._received = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()
