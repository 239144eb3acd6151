"""Checks and conversions of operands, shared by the ops. Only `lengths_of` reads the values of a tensor."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of parameters, states, coefficients and angles for rows of a real `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_enabled(device_type: str) -> bool:
    """Reports whether autocast converts the operands of ops on such a device."""
    # torch 2.10 cannot compile torch.amp.is_autocast_available.
    return device_type in ("cpu", "cuda") and torch.is_autocast_enabled(device_type)


def has_half_kernels(device_type: str) -> bool:
    """Reports whether the kernels of a device take half precision, so that autocast converts their rows."""
    return device_type != "cpu"


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """A context in which plain PyTorch computes in the dtypes of its operands."""
    return torch.autocast(device_type, enabled=False) if autocast_enabled(device_type) else nullcontext()


def cast(dtype: torch.dtype, *operands: Tensor | None) -> tuple[Any, ...]:
    """The operands in `dtype`; None stays None."""
    # Compares first, because a call of `to` takes longer even if it does nothing.
    return tuple(x if x is None or x.dtype == dtype else x.to(dtype) for x in operands)


def cast_parameters(dtype: torch.dtype, *parameters: Tensor | None) -> tuple[Any, ...]:
    """The parameters, converted to `dtype` from half precision; other dtypes and None are unchanged."""
    return tuple(x.to(dtype) if x is not None and x.dtype in HALF else x for x in parameters)


def cast_for_autocast(device_type: str, *operands: Tensor | None) -> tuple[Any, ...]:
    """The operands in the dtype of autocast, which is float32 for ops on the CPU.

    Without autocast nothing is converted; with it, float64 and integers are not, as in PyTorch's ops.
    """
    if not autocast_enabled(device_type):
        return operands
    dtype = torch.get_autocast_dtype(device_type) if has_half_kernels(device_type) else torch.float32
    return tuple(
        x if x is None or not x.is_floating_point() or x.dtype == torch.float64 else x.to(dtype)
        for x in operands
    )


def check_operands(
    op: str,
    first_name: str,
    first: Tensor,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
    **others: tuple[Tensor | None, tuple[Any, ...]] | tuple[Tensor | None, tuple[Any, ...], torch.dtype],
) -> None:
    """Check that operands have the expected shapes and dtypes and are on one device.

    Under autocast, which converts operands to one dtype, any floating dtype passes.

    Args:
        op: the op's name, for the messages.
        first_name, first: name and tensor of the operand that sets dtype and device.
        dtypes: dtypes that `first` may have.
        others: name = (tensor or None, expected shape[, expected dtype]). The dtype defaults to that of
            `first`. A string in the shape, such as "K", accepts any size.

    Raises:
        ValueError: if a shape or device is wrong; TypeError: if a dtype is. The message names the operand.
    """
    dtype, device = first.dtype, first.device
    if dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{op}: {first_name} must be one of {names}, got {first.dtype}; convert it first")
    for name, (x, shape, *own_dtype) in others.items():
        if x is None:
            continue
        if x.shape != shape and not _fits(x.shape, shape):
            expected = ", ".join(map(str, shape))
            raise ValueError(f"{op}: {name} must be [{expected}], got shape {tuple(x.shape)}")
        if own_dtype and x.dtype != own_dtype[0]:
            raise TypeError(
                f"{op}: {name} is {x.dtype}; with {first_name} in {dtype} it must be {own_dtype[0]}"
            )
        if x.device != device:
            raise ValueError(f"{op}: {name} is on {x.device}, {first_name} on {device}; they must agree")
        if (
            not own_dtype
            and x.dtype != dtype
            and not (x.is_floating_point() and autocast_enabled(device.type))
        ):
            raise TypeError(f"{op}: {name} is {x.dtype}, {first_name} is {dtype}; they must agree")


def _fits(shape: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    """Whether a shape is the expected one, in which a string stands for any size."""
    return len(shape) == len(expected) and all(
        isinstance(size, str) or size == got for size, got in zip(expected, shape, strict=True)
    )


def check_parameters(
    op: str, first_name: str, first: Tensor, **parameters: tuple[Tensor | None, tuple[Any, ...]]
) -> None:
    """`check_operands` for parameters, which may also be float32 if `first` has half precision.

    Raises:
        ValueError: if a shape or device is wrong; TypeError: if a dtype is. The message names the operand.
    """
    wide = state_dtype(first.dtype)
    typed: dict[str, Any] = parameters
    if wide != first.dtype:
        typed = {
            name: (p, shape, wide) if p is not None and p.dtype == wide else (p, shape)
            for name, (p, shape) in parameters.items()
        }
    check_operands(op, first_name, first, **typed)


def check_cu_seqlens(op: str, cu_seqlens: Tensor, like: Tensor) -> None:
    """Check that `cu_seqlens` is int32 or int64 [B + 1] on the device of `like`.

    Raises:
        TypeError, ValueError: if it is not.
    """
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"{op}: cu_seqlens must be [B + 1], got shape {tuple(cu_seqlens.shape)}")
    if cu_seqlens.device != like.device:
        raise ValueError(f"{op}: cu_seqlens is on {cu_seqlens.device}, the operands on {like.device}")


def offsets_of(op: str, name: str, x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Check the offsets of packed rows x [T, D], or make those of x [B, L, D] if `cu_seqlens` is None.

    Raises:
        TypeError, ValueError: if a shape or dtype is wrong, or packed rows come without cu_seqlens.
    """
    if cu_seqlens is None:
        if x.dim() == 2:
            raise ValueError(f"{op}: packed rows {name} [T, D] need cu_seqlens")
        if x.dim() != 3:
            raise ValueError(f"{op}: {name} must be [T, D] or [B, L, D], got shape {tuple(x.shape)}")
        return torch.arange(x.shape[0] + 1, device=x.device, dtype=torch.int64) * x.shape[1]
    if x.dim() != 2:
        raise ValueError(f"{op}: with cu_seqlens {name} must be [T, D], got shape {tuple(x.shape)}")
    check_cu_seqlens(op, cu_seqlens, x)
    return cu_seqlens


def lengths_of(op: str, cu_seqlens: Tensor, num_rows: int) -> list[int]:
    """The lengths of the sequences, read from the device.

    Raises:
        RuntimeError: if the offsets do not start at 0, decrease or do not end at `num_rows`.
    """
    offsets = cu_seqlens.tolist()
    lengths = [end - start for start, end in itertools.pairwise(offsets)]
    if offsets[0] != 0 or offsets[-1] != num_rows or any(length < 0 for length in lengths):
        found = f"{offsets[:8]} ..." if len(offsets) > 8 else str(offsets)
        raise RuntimeError(
            f"{op}: cu_seqlens must start at 0, not decrease and end at {num_rows}, got {found}"
        )
    return lengths


def kernel_size_of(op: str, name: str, weight: Tensor, channels: int) -> int:
    """K of a convolution's weight [channels, K].

    Raises:
        ValueError: if it is not a matrix or K is 0.
    """
    if weight.dim() != 2:
        raise ValueError(f"{op}: {name} must be [{channels}, K], got shape {tuple(weight.shape)}")
    if weight.shape[1] < 1:
        raise ValueError(f"{op}: {name} has kernel size 0, shape {tuple(weight.shape)}; expected at least 1")
    return weight.shape[1]


def to_rows(x: Tensor) -> Tensor:
    """[B, L, D] -> [B L, D], a view if the strides allow it. Packed rows [T, D] are returned unchanged."""
    return x.flatten(0, 1) if x.dim() == 3 else x


def with_shape(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows [B L, D] in the shape of the operand that `to_rows` took."""
    return rows if rows.dim() == len(shape) else rows.view(shape)


def optional_rows(x: Tensor | None) -> Tensor | None:
    """`to_rows` of an operand that may be absent."""
    return None if x is None else to_rows(x)


def gradient_like(operand: Tensor | None, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialized gradient of an operand; for None, an empty tensor in `dtype` or that of `like`."""
    return like.new_empty(0, dtype=dtype) if operand is None else operand.new_empty(operand.shape)


def none_for_absent(
    gradients: tuple[Tensor, ...], operands: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients, with None for operands that are None."""
    return tuple(d if x is not None else None for d, x in zip(gradients, operands, strict=True))


def refuse_gradients(op: str, instead: str, *operands: Tensor | None) -> None:
    """Check that an op in place, which has no gradient, needs none.

    Raises:
        NotImplementedError: in grad mode, if an operand requires a gradient; the message says what to use
            instead.
    """
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands):
        raise NotImplementedError(
            f"{op}: it updates a state in place and has no gradient; call it under torch.no_grad(), or use "
            f"{instead}"
        )


def check_state(op: str, name: str, state: Tensor) -> None:
    """Check that the parts of a state [B, ...] are contiguous and do not overlap, to be updated in place.

    Raises:
        ValueError: if they are not.
    """
    if state.is_contiguous():
        return
    strides, part = state.stride(), 1
    for size, stride in zip(reversed(state.shape[1:]), reversed(strides[1:]), strict=True):
        if size > 1 and stride != part:
            raise ValueError(
                f"{op}: {name} must be contiguous but for its first dimension, got strides {strides}"
            )
        part *= size
    if state.shape[0] > 1 and strides[0] < part:
        raise ValueError(f"{op}: {name} has parts that overlap, with strides {strides}; clone it first")
