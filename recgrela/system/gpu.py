"""Whether this build's CUDA kernels run on a GPU, and if not, why and what to do."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from functools import cache

import torch

from recgrela.ops import has_kernels
from recgrela.ops._library import _C

INSTALL = "install recgrela again: pip install --force-reinstall --no-deps, from its source"


@dataclass(frozen=True)
class Code:
    """What the library holds for one compute capability, as written in TORCH_CUDA_ARCH_LIST."""

    major: int
    minor: int
    suffix: str  # "a": for this one alone; "f" or "": also for newer ones of its major version
    ptx: bool  # and in a form that the driver compiles for any newer one

    def runs_on(self, major: int, minor: int) -> bool:
        if self.suffix == "a":
            return (major, minor) == (self.major, self.minor)
        return major == self.major and minor >= self.minor

    def compiles_for(self, major: int, minor: int) -> bool:
        return self.ptx and not self.suffix and (major, minor) >= (self.major, self.minor)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}{self.suffix}{'+PTX' if self.ptx else ''}"


def built_codes() -> list[Code]:
    """What the library was compiled for; empty without CUDA kernels."""
    found = re.findall(r"(\d+)\.(\d)([a-z]?)(\+PTX)?", _C.cuda_architectures or "")
    return [Code(int(major), int(minor), suffix, bool(ptx)) for major, minor, suffix, ptx in found]


def code_for(major: int, minor: int) -> str | None:
    """How a GPU of this compute capability runs the kernels: "compiled", "PTX", or None: not at all."""
    codes = built_codes()
    if any(code.runs_on(major, minor) for code in codes):
        return "compiled"
    return "PTX" if any(code.compiles_for(major, minor) for code in codes) else None


@cache
def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the NVIDIA driver supports, such as (13, 0); None without a driver."""
    torch.cuda.is_available()  # loads it from where PyTorch finds it, if that is elsewhere
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def built_cuda() -> tuple[int, int]:
    """The CUDA release that built the library."""
    major, minor = map(int, _C.cuda_version.split(".")[:2])
    return major, minor


def _driver_and_build(driver: tuple[int, int]) -> str:
    newest = f"{driver[0]}.{driver[1]}"
    return f"the NVIDIA driver supports CUDA up to {newest}, recgrela was built with {_C.cuda_version}"


def build_obstacle() -> str | None:
    """Why no GPU at all can run the kernels; None if one could."""
    if not torch.version.cuda:
        hint = ", but there is an NVIDIA driver: install a PyTorch for CUDA" if driver_cuda() else ""
        return f"PyTorch {torch.__version__} is built without CUDA{hint}"
    if not has_kernels("cuda"):
        return f"recgrela was built without CUDA kernels; {INSTALL}, with this PyTorch in the environment"
    driver = driver_cuda()
    if driver is None:
        return "there is no NVIDIA driver (libcuda.so.1)"
    if driver[0] < built_cuda()[0]:
        remedy = f"update the driver, or build with an nvcc of CUDA {driver[0]} (CUDA_HOME)"
        return f"{_driver_and_build(driver)}: {remedy}"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} sees no GPU: {_why_torch_sees_none()}"
    return None


def _why_torch_sees_none() -> str:
    """PyTorch's own words."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())
    return "CUDA_VISIBLE_DEVICES names none"


def gpu_obstacle(index: int = 0) -> str | None:
    """Why the kernels do not run on one of the GPUs that PyTorch sees; None if they should."""
    if obstacle := build_obstacle():
        return obstacle
    try:
        major, minor = torch.cuda.get_device_capability(index)
    except RuntimeError as error:  # in use by another process alone, broken
        return f"GPU {index} does not start: {' '.join(str(error).split())}"
    code, driver = code_for(major, minor), driver_cuda()
    rebuild = f"{INSTALL}, with TORCH_CUDA_ARCH_LIST={major}.{minor}"
    if code == "PTX" and driver and driver < built_cuda():
        return f"{_driver_and_build(driver)}, whose PTX it does not compile: update the driver, or {rebuild}"
    if code is None:
        has = ", ".join(map(str, built_codes()))
        name = torch.cuda.get_device_name(index)
        what = f"{name} has compute capability {major}.{minor}, recgrela has code for {has}"
        if major < 8:
            return f"{what}: its kernels need 8.0 or newer"
        return f"{what}; {rebuild}"
    return None
