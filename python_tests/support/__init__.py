"""What the tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recgrela.ops import has_kernels

NO_GPU = not (torch.cuda.is_available() and has_kernels("cuda"))


def needs_gpu(test: Any) -> Any:
    """Marks a test `gpu`, which is skipped without one."""
    why = "needs a GPU, a PyTorch for CUDA and a build with CUDA kernels"
    return pytest.mark.gpu(pytest.mark.skipif(NO_GPU, reason=why)(test))


def shared_file(relative: str) -> Path:
    """A file below the folder RECGRELA_SHARED names; skips the test, saying so, when it is not there."""
    root = os.environ.get("RECGRELA_SHARED")
    if root is None or not (Path(root) / relative).exists():
        pytest.skip(f"set RECGRELA_SHARED to the folder that holds {relative}")
    return Path(root) / relative


def assert_close(name: str, expected: Tensor, got: Tensor, ratio: float, scale: float = 0.0) -> None:
    """The largest difference is within `ratio` of the largest expected value (or of `scale`, if larger).

    `scale` is for gradients that cancel almost to nothing, where only the size of the terms is meaningful.
    """
    assert got.shape == expected.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return
    assert got.isfinite().all(), f"{name}: not finite"
    size = max(expected.abs().max().item(), scale)
    error = (got.double() - expected.double()).abs().max().item()
    assert error <= ratio * size, f"{name}: differs by {error:.3g} at size {size:.3g} (allowed {ratio:.1g})"


def cu_seqlens_of(lengths: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
    """[B + 1] offsets of sequences of these lengths."""
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)
