"""Dropout that stores no mask: a hash of a seed and the element's index decides whether it is kept."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import call_operator, register_operator
from recgrela.ops.checks import state_dtype
from recgrela.ops.support import Kernel, Op

_LOW32 = (1 << 32) - 1
_DRAWS = 1 << 16


def _shifted(z: Tensor, bits: int) -> Tensor:
    """The logical right shift, which int64 lacks."""
    return z >> bits & (1 << 64 - bits) - 1


def _scatter_seed(z: Tensor) -> Tensor:
    """The finalizer of SplitMix64: seeds that differ in one bit give unrelated results."""
    z = z + (0x9E3779B97F4A7C15 - 2**64)
    z = (z ^ _shifted(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shifted(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _shifted(z, 31)


def draws_at(index: Tensor, seed: Tensor) -> Tensor:
    """int64, uniform in 0 .. 2^16 - 1, for each index.

    The indices i and i + 8, for an i whose bit 3 is 0, share a hash of 32 bits: the lower half is the draw of
    i, the upper half that of i + 8. The hash is two rounds of multiply and xor-shift ("lowbias32") of i, with
    one half of the scattered seed added before the first and the other before the second.
    """
    seed = _scatter_seed(seed)
    h = (index & ~8) + seed & _LOW32
    h = (h ^ h >> 16) * 0x7FEB352D + _shifted(seed, 32) & _LOW32
    h = (h ^ h >> 15) * 0x846CA68B & _LOW32
    return (h ^ h >> 16) >> 2 * (index & 8) & _DRAWS - 1


def new_seeds(count: int, device: torch.device) -> Tensor:
    """[count] int64, drawn from PyTorch's generator of the device."""
    return torch.randint(2**63 - 1, (count,), device=device)


def threshold_and_scale(rate: float) -> tuple[int, float]:
    """The draws below which an element is dropped, and the factor of the other elements."""
    threshold = min(round(rate * _DRAWS), _DRAWS - 1)
    return threshold, _DRAWS / (_DRAWS - threshold)


def check_rate(op: str, name: str, rate: float) -> None:
    """Check a rate of dropout or DropPath.

    Raises:
        ValueError: if it is wrong.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"{op}: the {name} rate must be at least 0 and below 1, got {rate}")


def check_dropout(op: str, rate: float, seed: Tensor | None, count: int, device: torch.device) -> None:
    """Check the dropout rate and the seeds.

    Raises:
        ValueError: if the rate, or the number or device of the seeds, is wrong; TypeError: if their dtype is.
    """
    check_rate(op, "dropout", rate)
    if seed is None:
        return
    if seed.dtype != torch.int64:
        raise TypeError(f"{op}: seed must be int64, got {seed.dtype}")
    if seed.numel() != count or seed.device != device:
        raise ValueError(
            f"{op}: seed must have {count} elements, on {device}; got {tuple(seed.shape)} on {seed.device}"
        )


def dropout_reference(x: Tensor, rate: float, seed: Tensor) -> Tensor:
    """The definition of `dropout` in plain PyTorch."""
    threshold, scale = threshold_and_scale(rate)
    keep = (draws_at(torch.arange(x.numel(), device=x.device), seed) >= threshold).view(x.shape)
    return torch.where(keep, x * scale, 0)


OP = Op(
    "dropout",
    {
        "cpu": Kernel((torch.float32, torch.float64)),
        "cuda": Kernel((torch.float32, torch.float16, torch.bfloat16)),
    },
    None,
    "composition",
)


def dropout(x: Tensor, rate: float, seed: Tensor | None = None) -> Tensor:
    """Sets each element of x to zero with probability `rate`, and divides the others by 1 - rate.

    A hash of the seed and the element's index decides, so that no mask is stored. On the CPU this takes a
    fraction of the time of `torch.nn.functional.dropout`, whose Mersenne Twister draws numbers one at a
    time. Where no kernel takes x, it calls that function, or plain PyTorch if given a seed.

    Args:
        x: any shape, floating point, up to 2^32 elements. The results are those of float32, rounded.
        rate: 0 <= rate < 1, rounded to a multiple of 2^-16, at most 1 - 2^-16.
        seed: one int64 on the device of `x`, shape [] or [1]; equal seeds drop the same elements on every
            device. None draws one from PyTorch's generator of the device.

    Returns:
        A tensor of the shape and dtype of `x`.

    Raises:
        ValueError: if the rate, or the seed's shape or device, is wrong; TypeError: if a dtype is.
        RuntimeError: for more than 2^32 elements.
    """
    check_dropout(OP.name, rate, seed, 1, x.device)
    if not x.is_floating_point():
        raise TypeError(f"dropout: x must be floating point, got {x.dtype}")
    if rate == 0:
        return x
    kind, computed = OP.implementation(x.device.type, x.dtype)
    if kind == "kernel":
        seed = new_seeds(1, x.device) if seed is None else seed
        return call_operator("dropout", x.to(computed), seed, float(rate)).to(x.dtype)
    if seed is None:
        return F.dropout(x, rate)
    return dropout_reference(x.to(state_dtype(x.dtype)), rate, seed).to(x.dtype)


def _fake(x: Tensor, seed: Tensor, rate: float) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, ctx.rate = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, None, None]:
    return call_operator("dropout", d_y, *ctx.saved_tensors, ctx.rate), None, None


register_operator("dropout", fake=_fake, setup=_setup, backward=_backward)
