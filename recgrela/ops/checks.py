"""Checks on the operands that the ops share. They read shapes and types, never values."""

from __future__ import annotations

import torch
from torch import Tensor


def check_rows(op: str, **operands: Tensor | None) -> None:
    """All given operands must be floating-point matrices of one shape, dtype and device.

    The first one sets the standard. Raises TypeError or ValueError naming the operand.
    """
    items = [(name, x) for name, x in operands.items() if x is not None]
    first_name, first = items[0]
    if first.dim() != 2:
        raise ValueError(f"{op}: {first_name} must be [T, D], got shape {tuple(first.shape)}")
    if not first.is_floating_point():
        raise TypeError(f"{op}: {first_name} must be floating point, got {first.dtype}")
    if first.device.type == "cpu" and first.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: on the CPU operands must be float32 or float64, got {first.dtype}")
    for name, x in items[1:]:
        if x.shape != first.shape:
            raise ValueError(
                f"{op}: {name} has shape {tuple(x.shape)}, {first_name} {tuple(first.shape)}; they must agree"
            )
        check_like(op, first_name, first, **{name: x})


def check_like(op: str, first_name: str, first: Tensor, **operands: Tensor | None) -> None:
    """The given operands must have the dtype and device of `first`. Raises TypeError or ValueError."""
    for name, x in operands.items():
        if x is None:
            continue
        if x.dtype != first.dtype:
            raise TypeError(f"{op}: {name} is {x.dtype}, {first_name} is {first.dtype}; they must agree")
        if x.device != first.device:
            raise ValueError(
                f"{op}: {name} is on {x.device}, {first_name} on {first.device}; they must agree"
            )


def check_cu_seqlens(op: str, cu_seqlens: Tensor, like: Tensor) -> None:
    """`cu_seqlens` must be int32 or int64 [B + 1] on the operands' device. Raises TypeError or ValueError."""
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"{op}: cu_seqlens must be [B + 1], got shape {tuple(cu_seqlens.shape)}")
    if cu_seqlens.device != like.device:
        raise ValueError(f"{op}: cu_seqlens is on {cu_seqlens.device}, the operands on {like.device}")


def equal_lengths(batch: int, length: int, device: torch.device) -> Tensor:
    """cu_seqlens [B + 1] of a dense [B, L] batch."""
    return torch.arange(batch + 1, device=device, dtype=torch.int64) * length
