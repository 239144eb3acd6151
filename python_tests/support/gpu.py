"""The mark of tests that need a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from recgrela.ops import has_kernels

NO_GPU = not (torch.cuda.is_available() and has_kernels("cuda"))


def needs_gpu(test: Any) -> Any:
    """Marks a test as `gpu` and skips it where the CUDA kernels cannot run."""
    reason = "needs a GPU, a PyTorch for CUDA and a build with CUDA kernels"
    return pytest.mark.gpu(pytest.mark.skipif(NO_GPU, reason=reason)(test))
