"""Rotary position encoding over interleaved pairs of channels."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

PI = Fraction("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


def rotary_table(
    length: int,
    dim: int,
    base: float = 10000.0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """(cos, sin) of the angle i * base^(-2t / dim) at position i for the channel pair (2t, 2t + 1).

    The angles are computed in float64 for every dtype, so that large positions are precise.

    Args:
        length: number of positions.
        dim: number of channels, even.
        base: base of the frequencies.
        dtype, device: dtype and device of the table.

    Returns:
        [length, dim / 2, 2] of `dtype`.

    Raises:
        ValueError: if `dim` is odd.
    """
    frequencies = _frequencies("rotary_table", dim, base, device)
    angles = torch.arange(length, dtype=torch.float64, device=device)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()], dim=-1).to(dtype)


def _frequencies(name: str, dim: int, base: float, device: torch.device | str | None) -> Tensor:
    """The angle of each pair of channels at position 1, in radians: float64 [dim / 2]."""
    if dim % 2:
        raise ValueError(f"{name}: dim must be even, got {dim}")
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)


def rotary_turns(dim: int, base: float = 10000.0, device: torch.device | str | None = None) -> Tensor:
    """The frequencies of `rotary_table` in turns per position, as fractions of 64 bits.

    An entry is f / (2 pi) in units of 2^-64 turns, modulo one turn, for a frequency of f radians. The angle
    at position i is i times the entry: a product that wraps around modulo 2^64 only drops whole turns. It is
    exact to i * 2^-65 turns, far beyond the positions at which floating-point products lose their fraction.

    Args:
        dim: number of channels, even.
        base: base of the frequencies.
        device: device of the result.

    Returns:
        [dim / 2] int64; a fraction of half a turn or more is negative.

    Raises:
        ValueError: if `dim` is odd.
    """
    frequencies = _frequencies("rotary_turns", dim, base, "cpu").tolist()
    units = (round(Fraction(f) / (2 * PI) * 2**64) for f in frequencies)
    return torch.tensor([(n + 2**63) % 2**64 - 2**63 for n in units], dtype=torch.int64, device=device)


def rotary_angles(position: Tensor, turns: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """(cos, sin) of the angles at any positions: row i of `rotary_table` for position i.

    Args:
        position: [B] int64.
        turns: [dim / 2] int64 from `rotary_turns`.
        dtype: dtype of the result; the angles are computed in float64.

    Returns:
        [B, dim / 2, 2] of `dtype`.
    """
    fraction = position[:, None] * turns  # wraps around
    angles = fraction.double() * (2 * math.pi * 2.0**-64)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).to(dtype)


def rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates each pair (x[..., 2t], x[..., 2t + 1]) by the angle of (cos, sin) = angles[..., t, :].

    Args:
        x: [..., D].
        angles: [..., D / 2, 2], broadcast with the pairs of `x`.

    Returns:
        A tensor of the shape of `x`.
    """
    cos, sin = angles.unbind(-1)
    x0, x1 = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([x0 * cos - x1 * sin, x0 * sin + x1 * cos], dim=-1).flatten(-2)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotates each pair (x[..., 2t], x[..., 2t + 1]) of row i by the angle of `table[i, t]`.

    Args:
        x: [..., n, D].
        table: [P, D / 2, 2] from `rotary_table`, P at least n.

    Returns:
        A tensor of the shape of `x`.
    """
    return rotate_pairs(x, table[: x.shape[-2]])
