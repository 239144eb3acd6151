"""A residual addition with dropout and DropPath, and the LayerNorm that follows it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops.checks import autocast_enabled, check_operands, state_dtype, without_autocast
from recgrela.ops.dropout import (
    check_dropout,
    check_rate,
    draws_at,
    dropout_reference,
    new_seeds,
    threshold_and_scale,
)
from recgrela.ops.dropout import dropout as drop
from recgrela.ops.support import Op

HALF = (torch.float16, torch.bfloat16)
OP = Op("add_norm", {}, None, "composition")


def path_factors(x: Tensor, rate: float, seed: Tensor, sequence: Tensor | None) -> Tensor:
    """[T, 1], the factor of each row's branch: 0 if its sequence drops it, else 1 / (1 - rate)."""
    index = torch.arange(x.shape[0], device=x.device) if sequence is None else sequence
    threshold, scale = threshold_and_scale(rate)
    keep = draws_at(index, seed) >= threshold
    return torch.where(keep, scale, 0.0).to(state_dtype(x.dtype))[:, None]


def add_norm_reference(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-12,
    post_norm: bool = False,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    sequence: Tensor | None = None,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition of `add_norm` in plain PyTorch; without a seed there is no dropout and no DropPath."""
    s = x
    if z is not None:
        if seed is not None:
            z = dropout_reference(z, dropout, seed[0]) * path_factors(z, drop_path, seed[1], sequence)
        s = x + z
    centered = s - s.mean(1, keepdim=True)
    variance = centered.square().mean(1, keepdim=True)
    y = centered / (variance + eps).sqrt() * weight + bias
    normed = y.to(x.dtype if z is None else z.dtype)
    return (y, normed) if post_norm else (s, normed)


def add_norm(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-12,
    post_norm: bool = False,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    sequence: Tensor | None = None,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Adds a branch to the residual stream, s = x + path * drop(z), and normalizes the rows of the sum.

    The norm is LayerNorm(s) = (s - mean) / sqrt(variance + eps) * weight + bias (Ba et al., 2016). `drop`
    is the dropout of `recgrela.ops.dropout`; `path` is DropPath (Huang et al., 2016), which drops the branch
    of a whole sequence.

    Args:
        x: [T, D], the residual stream: float32 if `z` is half precision or autocast is enabled, else the
            dtype of `z`.
        z: [T, D], the branch; None: s = x.
        weight, bias: [D], float32 for half-precision rows, else the dtype of `x`.
        eps: added to the variance.
        post_norm: whether the residual stream is the normalized sum.
        dropout: rate of the dropout of the elements of `z`.
        drop_path: rate at which sequences drop their branch.
        sequence: int64 [T], the index of each row's sequence, for `drop_path`; None: each row is a sequence.
        seed: int64 [2], for dropout and DropPath; None draws them from PyTorch's generator of the device.

    Returns:
        (residual, normed), each [T, D]. `residual` is s or, with `post_norm`, LayerNorm(s), of the dtype of
        `x`; without `z` and `post_norm` it is `x` itself. `normed` is LayerNorm(s), of the dtype of autocast
        if it is enabled, else of `z`, or of `x` if `z` is None.

    Raises:
        ValueError: if a shape, a device or a rate is wrong; TypeError: if a dtype is.
        RuntimeError: for dropout of more than 2^32 elements.
    """
    op, device_type = OP.name, x.device.type
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"{op}: x must be [T, D] with a width above 0, got shape {tuple(x.shape)}")
    rows, width = x.shape
    check_dropout(op, dropout, seed, 2, x.device)
    check_rate(op, "drop_path", drop_path)
    stream, dtype = x, x.dtype if z is None else z.dtype
    if autocast_enabled(device_type) and x.is_floating_point() and x.dtype != torch.float64:
        dtype, stream = torch.get_autocast_dtype(device_type), x.float()
        z = z if z is None or not z.is_floating_point() else z.to(dtype)
    elif z is None and x.dtype in HALF:
        stream = x.float()
    computed = state_dtype(dtype)
    weight, bias = (p.to(computed) if p.dtype in HALF else p for p in (weight, bias))
    check_operands(
        op,
        "x" if z is None else "z",
        stream if z is None else z,
        z=(z, (rows, width), dtype),
        x=(stream, (rows, width), computed),
        weight=(weight, (width,), computed),
        bias=(bias, (width,), computed),
        sequence=(sequence, (rows,), torch.int64),
    )
    if z is None or not (dropout or drop_path):
        seed = None
    elif seed is None:
        seed = new_seeds(2, x.device)
    with without_autocast(device_type):
        s = stream
        if z is not None:
            if seed is not None and dropout:
                z = drop(z, dropout, seed[0])
            if seed is not None and drop_path:
                z = z * path_factors(z, drop_path, seed[1], sequence)
            s = stream + z
        y = F.layer_norm(s, (width,), weight, bias, eps)
    residual = y if post_norm else x if z is None else s
    return residual, y.to(dtype)
