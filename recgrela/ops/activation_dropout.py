"""An activation and dropout in one pass, whose backward needs nothing but the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import no_second_derivative, skip_setup
from recgrela.ops.checks import check_devices

DropoutActivation = Literal["none", "relu", "silu", "gelu"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
}
_LOW32 = (1 << 32) - 1


def _scatter_bits(h: Tensor) -> Tensor:
    """A permutation of the 32-bit numbers, in int64: two rounds of multiply and xor-shift ("lowbias32")."""
    h = (h ^ h >> 16) * 0x7FEB352D & _LOW32
    h = (h ^ h >> 15) * 0x846CA68B & _LOW32
    return h ^ h >> 16


def _draws(seed: Tensor, numel: int) -> Tensor:
    """[numel] int64 in 0 .. 2^32 - 1, a hash of the seed and the place."""
    place = torch.arange(numel, device=seed.device)
    key = (seed >> 32 & _LOW32) + (place >> 32) * 0x9E3779B9 & _LOW32
    return _scatter_bits(_scatter_bits((place & _LOW32) + (seed & _LOW32) & _LOW32) ^ key)


def activation_dropout_reference(
    x: Tensor, rate: float, seed: Tensor, activation: DropoutActivation = "none"
) -> Tensor:
    """The definition of `activation_dropout` in plain PyTorch."""
    y = _ACTIVATIONS[activation](x)
    dropped = min(round(rate * 2**32), _LOW32)
    keep = (_draws(seed, x.numel()) >= dropped).view(x.shape)
    return torch.where(keep, y * (2**32 / (2**32 - dropped)), 0)


def activation_dropout(
    x: Tensor, rate: float, seed: Tensor | None = None, activation: DropoutActivation = "none"
) -> Tensor:
    """act(x) with each element zeroed at probability `rate` and the others divided by 1 - rate.

    Whether an element stays is a hash of the seed and its place, so that no mask is kept.

    Args:
        x: any shape, floating point. Half precision is computed in float32.
        rate: 0 <= rate < 1, rounded to a multiple of 2^-32; 0 leaves the dropout out.
        seed: one int64 on the device of `x`, shape [] or [1]; None draws it from torch's generator there.
        activation: "none", "relu", "silu" or "gelu" (the exact one, by erf).

    Returns:
        A tensor of the shape and dtype of `x`.

    Raises:
        ValueError: on a rate, seed shape or activation; TypeError: on a dtype.
        NotImplementedError: from a second derivative; use `activation_dropout_reference`.
    """
    op = "activation_dropout"
    if activation not in get_args(DropoutActivation):
        names = ", ".join(get_args(DropoutActivation))
        raise ValueError(f"{op}: activation must be one of {names}, got {activation!r}")
    if not 0 <= rate < 1:
        raise ValueError(f"{op}: rate must be at least 0 and below 1, got {rate}")
    if not x.is_floating_point():
        raise TypeError(f"{op}: x must be floating point, got {x.dtype}")
    if seed is None:
        seed = torch.randint(2**63 - 1, (1,), device=x.device)
    if seed.dtype != torch.int64:
        raise TypeError(f"{op}: seed must be int64, got {seed.dtype}")
    if seed.numel() != 1 or seed.device != x.device:
        raise ValueError(
            f"{op}: seed must be one number on {x.device}, got shape {tuple(seed.shape)} on {seed.device}"
        )
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.ops.recgrela.activation_dropout(wide, seed, activation, float(rate)).to(x.dtype)


@torch.library.impl("recgrela::activation_dropout", "CUDA")
def _plain(x: Tensor, seed: Tensor, activation: DropoutActivation, rate: float) -> Tensor:
    return activation_dropout_reference(x, rate, seed, activation)


@torch.library.impl("recgrela::activation_dropout_backward", "CUDA")
def _plain_backward(
    dy: Tensor, x: Tensor, seed: Tensor, activation: DropoutActivation, rate: float
) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(activation_dropout_reference(x, rate, seed, activation), x, dy)[0]


@torch.library.register_fake("recgrela::activation_dropout")
def _fake(x: Tensor, seed: Tensor, activation: str, rate: float) -> Tensor:
    check_devices("activation_dropout", x, seed)
    return x.new_empty(x.shape)


@torch.library.register_fake("recgrela::activation_dropout_backward")
def _fake_backward(dy: Tensor, x: Tensor, seed: Tensor, activation: str, rate: float) -> Tensor:
    check_devices("activation_dropout_backward", dy, x, seed)
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation, ctx.rate = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx = torch.ops.recgrela.activation_dropout_backward(dy, *ctx.saved_tensors, ctx.activation, ctx.rate)
    return dx, None, None, None


torch.library.register_autograd("recgrela::activation_dropout", _backward, setup_context=_setup)
torch.library.register_autograd(
    "recgrela::activation_dropout_backward", no_second_derivative, setup_context=skip_setup
)
