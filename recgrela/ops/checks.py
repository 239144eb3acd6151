"""Checks on the operands that the ops share. They read shapes and types, never values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# What the kernels compute in, by the type of device.
KERNEL_DTYPES = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
}


def autocast_enabled(device_type: str) -> bool:
    """Whether operands on such a device are cast by autocast."""
    # Not torch.amp.is_autocast_available, which torch 2.10 cannot compile.
    return device_type in KERNEL_DTYPES and torch.is_autocast_enabled(device_type)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of sums, states and tables of angles that go with operands of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def cast_for_autocast(device_type: str, *operands: Tensor | None) -> tuple[Tensor | None, ...]:
    """Operands as autocast wants them: in float32 on the CPU, in autocast's dtype elsewhere.

    Without autocast, as they are. float64 is left alone, as autocast does.
    """
    if not autocast_enabled(device_type):
        return operands
    dtype = torch.float32 if device_type == "cpu" else torch.get_autocast_dtype(device_type)
    return tuple(
        x if x is None or not x.is_floating_point() or x.dtype == torch.float64 else x.to(dtype)
        for x in operands
    )


def check_operands(
    op: str,
    first_name: str,
    first: Tensor,
    any_float: bool = False,
    complex_too: bool = False,
    **others: tuple[Tensor | None, tuple[Any, ...]] | tuple[Tensor | None, tuple[Any, ...], torch.dtype],
) -> None:
    """`first` and the others must have their shapes, one floating dtype (or one of their own) and one device.

    Under autocast, which makes the dtypes one, any floating dtypes do.

    Args:
        op: the op's name, for the messages.
        first_name, first: the operand that sets dtype and device.
        any_float: the op runs in any floating dtype, not only in those of the CPU kernels.
        complex_too: the op runs in complex dtypes too.
        others: name = (tensor or None, expected shape[, dtype other than that of `first`]); an entry of the
            shape that is a string, such as "K", stands for any size.

    Raises:
        ValueError: on a shape or device; TypeError: on a dtype. The operand is named.
    """
    cast = autocast_enabled(first.device.type)
    checked = {first_name: (first, tuple(first.shape)), **others}
    for name, (x, shape, *own_dtype) in checked.items():
        if x is None:
            continue
        fits = x.dim() == len(shape) and all(
            isinstance(size, str) or size == got for size, got in zip(shape, x.shape, strict=True)
        )
        if not fits:
            expected = ", ".join(map(str, shape))
            raise ValueError(f"{op}: {name} must be [{expected}], got shape {tuple(x.shape)}")
        if own_dtype and x.dtype != own_dtype[0]:
            raise TypeError(
                f"{op}: {name} is {x.dtype}; with {first_name} in {first.dtype} it must be {own_dtype[0]}"
            )
        if not own_dtype and not (x.is_floating_point() or (complex_too and x.is_complex())):
            raise TypeError(f"{op}: {name} must be floating point, got {x.dtype}")
        if x.device != first.device:
            raise ValueError(
                f"{op}: {name} is on {x.device}, {first_name} on {first.device}; they must agree"
            )
        if not own_dtype and x.dtype != first.dtype and not cast:
            raise TypeError(f"{op}: {name} is {x.dtype}, {first_name} is {first.dtype}; they must agree")
    taken = KERNEL_DTYPES.get(first.device.type, (first.dtype,))
    if not any_float and not cast and first.dtype not in taken:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in taken)
        raise TypeError(f"{op}: on {first.device.type} operands must be {names}, got {first.dtype}")


def check_cu_seqlens(op: str, cu_seqlens: Tensor, like: Tensor) -> None:
    """`cu_seqlens` must be int32 or int64 [B + 1] on the operands' device. Raises TypeError or ValueError."""
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"{op}: cu_seqlens must be [B + 1], got shape {tuple(cu_seqlens.shape)}")
    if cu_seqlens.device != like.device:
        raise ValueError(f"{op}: cu_seqlens is on {cu_seqlens.device}, the operands on {like.device}")


def number_of_taps(op: str, name: str, weight: Tensor, channels: int) -> int:
    """K of a convolution's weight [channels, K]. Raises ValueError."""
    if weight.dim() != 2:
        raise ValueError(f"{op}: {name} must be [{channels}, K], got shape {tuple(weight.shape)}")
    if weight.shape[1] < 1:
        raise ValueError(f"{op}: {name} has no taps, shape {tuple(weight.shape)}")
    return weight.shape[1]


def check_devices(op: str, *operands: Tensor | None) -> None:
    """All operands must be on one device. For the shape functions, which a single meta operand would call."""
    devices = {x.device for x in operands if x is not None}
    if len(devices) > 1:
        raise ValueError(f"{op}: operands on several devices: {', '.join(sorted(map(str, devices)))}")


def sequences_of(op: str, name: str, x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """cu_seqlens of an operand: as given for rows [T, D], made for a dense [B, L, D].

    Raises:
        ValueError: another number of dimensions, or rows without cu_seqlens.
    """
    if cu_seqlens is None:
        if x.dim() == 2:
            raise ValueError(f"{op}: packed rows {name} [T, D] need cu_seqlens")
        if x.dim() != 3:
            raise ValueError(f"{op}: {name} must be [T, D] or [B, L, D], got shape {tuple(x.shape)}")
        return torch.arange(x.shape[0] + 1, device=x.device, dtype=torch.int64) * x.shape[1]
    if x.dim() != 2:
        raise ValueError(f"{op}: with cu_seqlens {name} must be [T, D], got shape {tuple(x.shape)}")
    return cu_seqlens


def to_rows(x: Tensor) -> Tensor:
    """[B, L, D] -> [B L, D], a view where the strides allow; rows stay as they are."""
    return x.flatten(0, 1) if x.dim() == 3 else x
