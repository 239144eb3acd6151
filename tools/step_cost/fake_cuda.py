"""Tensors without data on a CUDA device, on a machine without a GPU."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_suffix(".cpp")


def load() -> None:
    """Lets autograd differentiate fake tensors on a CUDA device. Call it before torch is imported.

    PyTorch for the CPU lacks what autograd's engine needs of a CUDA device. A small library, built once, adds
    it.

    Raises:
        RuntimeError: if torch is already imported, or the library does not compile.
    """
    if "torch" in sys.modules:
        raise RuntimeError("fake_cuda: torch is already imported; call load() first, in a process of its own")
    found = importlib.util.find_spec("torch")
    assert found and found.submodule_search_locations
    torch_folder = Path(found.submodule_search_locations[0])
    if (torch_folder / "lib" / "libtorch_cuda.so").exists():
        return
    ctypes.CDLL(str(torch_folder / "lib" / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(_library(torch_folder)), mode=ctypes.RTLD_GLOBAL)


def _library(torch_folder: Path) -> Path:
    key = f"{importlib.metadata.version('torch')} {torch_folder} {SOURCE.read_text()}"
    path = ROOT / "build" / "fake_cuda" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}")
    folders = (torch_folder / "include", torch_folder / "include" / "torch" / "csrc" / "api" / "include")
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-shared", "-fPIC", SOURCE, "-o", new]
    command += [*(f"-I{folder}" for folder in folders), f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"fake_cuda: {SOURCE.name} does not compile: {result.stderr[-2000:]}")
    new.replace(path)
    return path


@contextmanager
def without_gpu() -> Iterator[None]:
    """A context in which torch.autocast and pinned memory do without a GPU."""
    answers = {"is_available": lambda: True, "is_bf16_supported": lambda *args, **kwargs: True}
    with mock.patch.multiple("torch.cuda", **answers), mock.patch("torch.Tensor.pin_memory", lambda x: x):
        yield
