"""Selects a device, and reports why this build's CUDA kernels cannot run on a GPU and how to fix it."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from functools import cache

import torch

from recgrela.ops import has_kernels
from recgrela.ops._library import _C
from recgrela.system.errors import ConfigError, one_line
from recgrela.system.suggest import near_miss

REINSTALL = "reinstall recgrela from source (pip install --force-reinstall --no-deps .)"
MIN_CAPABILITY = (8, 0)


def use_device(name: str, local_rank: int = 0, local_world: int = 1) -> torch.device:
    """Like `parse_device`, but also makes a GPU PyTorch's current device, on which CUDA graphs are captured.

    Args:
        name: see `parse_device`. Of several processes on a host, each uses the GPU with its own number.
        local_rank: number of this process on its host.
        local_world: number of processes on its host.

    Raises:
        ConfigError: see `parse_device`; or several processes would use one GPU.
    """
    if local_world > 1:
        if name.startswith("cuda:"):
            raise ConfigError(
                f"device {name!r}: {local_world} processes on this host cannot share a GPU; use cuda or "
                "auto, so that each process uses its own"
            )
        if name == "auto" and torch.cuda.is_available():
            name = "cuda"
        if name == "cuda":
            if torch.cuda.is_available() and local_world > torch.cuda.device_count():
                raise ConfigError(
                    f"{local_world} processes on this host, but PyTorch detects {torch.cuda.device_count()} "
                    "GPUs; start at most one process for each"
                )
            name = f"cuda:{local_rank}"
    device = parse_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    return device


def parse_device(name: str) -> torch.device:
    """The device with a name; "auto" is the GPU if PyTorch detects one, else the CPU.

    Raises:
        ConfigError: the name is not a device, this machine has no such device, or this build has no kernels
            for it. "auto" fails too if PyTorch detects a GPU that the kernels cannot use.
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
            raise ConfigError(f"device {name!r}: PyTorch detects {count} CUDA devices; use auto or cpu")
        if obstacle := gpu_obstacle(int(index or 0)):
            raise ConfigError(f"device {name!r}: {obstacle}; or use the device cpu")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """The name of the GPU model, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


@dataclass(frozen=True)
class Architecture:
    """The library's code for one compute capability, as written in TORCH_CUDA_ARCH_LIST.

    Attributes:
        major, minor: the compute capability.
        suffix: "a" restricts the code to this capability; "f" and "" allow newer ones of the same major
            version.
        ptx: whether the library also holds PTX, which the driver compiles for newer capabilities.
    """

    major: int
    minor: int
    suffix: str
    ptx: bool

    def runs_on(self, major: int, minor: int) -> bool:
        """Whether the compiled code runs on a compute capability."""
        if self.suffix == "a":
            return (major, minor) == (self.major, self.minor)
        return major == self.major and minor >= self.minor

    def compiles_for(self, major: int, minor: int) -> bool:
        """Whether the driver can compile the PTX for a compute capability."""
        return self.ptx and not self.suffix and (major, minor) >= (self.major, self.minor)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}{self.suffix}{'+PTX' if self.ptx else ''}"


def built_architectures() -> list[Architecture]:
    """The architectures that the library was compiled for; empty without CUDA kernels."""
    found = re.findall(r"(\d+)\.(\d)([a-z]?)(\+PTX)?", _C.cuda_architectures or "")
    return [Architecture(int(major), int(minor), suffix, bool(ptx)) for major, minor, suffix, ptx in found]


def code_for(major: int, minor: int) -> str | None:
    """How a GPU of a compute capability runs the kernels: "compiled", "PTX", or None if it cannot."""
    architectures = built_architectures()
    if any(architecture.runs_on(major, minor) for architecture in architectures):
        return "compiled"
    return "PTX" if any(architecture.compiles_for(major, minor) for architecture in architectures) else None


@cache
def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA version that the NVIDIA driver supports, such as (13, 0); None without a driver."""
    torch.cuda.is_available()  # loads the driver from PyTorch's search path, which may differ from ours
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def built_cuda() -> tuple[int, int]:
    """The CUDA version that the library was built with."""
    major, minor = map(int, _C.cuda_version.split(".")[:2])
    return major, minor


def build_obstacle() -> str | None:
    """The reason, with a fix, why the kernels cannot run on any GPU; None if they can run on some."""
    if not torch.version.cuda:
        hint = "; a driver is installed, so install a PyTorch with CUDA" if driver_cuda() else ""
        return f"PyTorch {torch.__version__} is built without CUDA{hint}"
    if not has_kernels("cuda"):
        return f"recgrela is built without CUDA kernels; {REINSTALL} with this PyTorch in the environment"
    driver = driver_cuda()
    if driver is None:
        return "no NVIDIA driver is installed (libcuda.so.1 is not found)"
    if driver[0] < built_cuda()[0]:
        fix = f"update the driver, or build with the nvcc of CUDA {driver[0]} (set CUDA_HOME)"
        return f"{_versions(driver)}; {fix}"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} detects no GPU: {_torch_error()}"
    return None


def gpu_obstacle(index: int = 0) -> str | None:
    """The reason, with a fix, why the kernels cannot run on a GPU; None if they should run.

    Args:
        index: PyTorch's number of the GPU.
    """
    if obstacle := build_obstacle():
        return obstacle
    try:
        major, minor = torch.cuda.get_device_capability(index)
    except RuntimeError as error:  # another process has exclusive use of the GPU, or it is broken
        return f"GPU {index} cannot be initialized: {one_line(error)}"
    code, driver = code_for(major, minor), driver_cuda()
    rebuild = f"{REINSTALL} with TORCH_CUDA_ARCH_LIST={major}.{minor}"
    if code == "PTX" and driver and driver < built_cuda():
        return f"{_versions(driver)}, whose PTX the driver cannot compile; update the driver, or {rebuild}"
    if code is None:
        built = ", ".join(map(str, built_architectures()))
        what = f"{torch.cuda.get_device_name(index)} has compute capability {major}.{minor}"
        if (major, minor) < MIN_CAPABILITY:
            return f"{what}; the kernels need 8.0 or newer"
        return f"{what}, but recgrela is built for {built}; {rebuild}"
    return None


def _versions(driver: tuple[int, int]) -> str:
    newest = f"{driver[0]}.{driver[1]}"
    return f"the NVIDIA driver supports CUDA up to {newest}, but recgrela is built with {_C.cuda_version}"


def _torch_error() -> str:
    """PyTorch's own explanation of why it detects no GPU."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return one_line(error)
    return "CUDA_VISIBLE_DEVICES hides all of them"
