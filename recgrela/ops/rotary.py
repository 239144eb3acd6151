"""Rotary position encoding over interleaved pairs of channels."""

from __future__ import annotations

import torch
from torch import Tensor


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
    if dim % 2:
        raise ValueError(f"rotary_table: dim must be even, got {dim}")
    frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
    angles = torch.arange(length, dtype=torch.float64, device=device)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()], dim=-1).to(dtype)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotates each pair (x[..., 2t], x[..., 2t + 1]) of row i by the angle of `table[i, t]`.

    Args:
        x: [..., n, D].
        table: [P, D / 2, 2] from `rotary_table`, P at least n.

    Returns:
        A tensor of the shape of `x`.
    """
    pairs = x.unflatten(-1, (-1, 2))
    cos, sin = table[: x.shape[-2]].unbind(-1)
    x0, x1 = pairs.unbind(-1)
    return torch.stack([x0 * cos - x1 * sin, x0 * sin + x1 * cos], dim=-1).flatten(-2)
