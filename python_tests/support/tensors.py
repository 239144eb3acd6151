"""Comparison of tensors, offsets of packed sequences, and counts of operations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def assert_close(name: str, expected: Tensor, got: Tensor, ratio: float, scale: float = 0.0) -> None:
    """Asserts that the largest error is at most `ratio` times the largest expected value.

    Args:
        name: name of the tensor in the assertion's message.
        ratio: largest allowed error, relative to the largest expected value or to `scale`, if that is larger.
        scale: size of the terms of a sum. Gradients that cancel almost to zero are compared with it.
    """
    assert got.shape == expected.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return
    assert got.isfinite().all(), f"{name}: not finite"
    size = max(expected.abs().max().item(), scale)
    error = (got.double() - expected.double()).abs().max().item()
    assert error <= ratio * size, f"{name}: differs by {error:.3g} at size {size:.3g} (allowed {ratio:.1g})"


def flops_of(call: Callable[[], object]) -> int:
    """Floating-point operations of a call, as PyTorch's counter adds them up."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def cu_seqlens_of(lengths: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
    """Offsets of sequences of the given lengths, [B + 1]."""
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)
