"""A residual addition with dropout and DropPath, and the LayerNorm that follows it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import call_and_pass, call_operator, register_operator
from recgrela.ops.checks import (
    HALF,
    autocast_enabled,
    cast,
    cast_parameters,
    check_operands,
    state_dtype,
    without_autocast,
)
from recgrela.ops.dropout import (
    check_dropout,
    check_rate,
    draws_at,
    dropout_reference,
    new_seeds,
    threshold_and_scale,
)
from recgrela.ops.dropout import dropout as drop
from recgrela.ops.support import Kernel, Op

OP = Op(
    "add_norm",
    {
        "cpu": Kernel((torch.float32, torch.float64)),
        "cuda": Kernel((torch.float32, torch.float16, torch.bfloat16), widths=range(32, 257, 16)),
    },
    None,
    "composition",
)


def path_factors(x: Tensor, rate: float, seed: Tensor, sequence: Tensor | None) -> Tensor:
    """[T, 1], the factor of each row's branch: 0 if its sequence drops it, else 1 / (1 - rate)."""
    index = torch.arange(x.shape[0], device=x.device) if sequence is None else sequence
    threshold, scale = threshold_and_scale(rate)
    keep = draws_at(index, seed) >= threshold
    return (keep.to(state_dtype(x.dtype)) * scale)[:, None]


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
        `x`, or float32 if that is half precision; without `z` and `post_norm` it is `x`, returned so that its
        gradient arrives in this op's backward. `normed` is LayerNorm(s), of the dtype of autocast if it is
        enabled, else of `z`, or of `x` if `z` is None.

    Raises:
        ValueError: if a shape, a device or a rate is wrong; TypeError: if a dtype is.
        RuntimeError: for dropout of more than 2^32 elements.
        NotImplementedError: for second derivatives of the kernel; use `add_norm_reference`.
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
    wide = state_dtype(dtype)
    weight, bias = cast_parameters(wide, weight, bias)
    check_operands(
        op,
        "x" if z is None else "z",
        stream if z is None else z,
        z=(z, (rows, width), dtype),
        x=(stream, (rows, width), wide),
        weight=(weight, (width,), wide),
        bias=(bias, (width,), wide),
        sequence=(sequence, (rows,), torch.int64),
    )
    if z is None:
        dropout = drop_path = 0.0
    if not (dropout or drop_path):
        seed = None
    elif seed is None:
        seed = new_seeds(2, x.device)
    if not drop_path:
        sequence = None
    args = (sequence, seed, float(eps), post_norm, float(dropout), float(drop_path))
    kind, computed = OP.implementation(device_type, dtype, widths=(width,))
    if kind != "kernel":
        with without_autocast(device_type):
            residual, normed = _composition(stream, z, weight, bias, *args)
    else:
        if stream is x and z is None and not post_norm:
            residual, _, normed = call_and_pass("add_norm", x, z, weight, bias, *args, computed)
            return residual, normed.to(dtype)
        (branch,) = cast(computed, z)
        residual, normed = call_operator("add_norm", stream, branch, weight, bias, *args, computed)
        if post_norm and computed == wide:
            residual = normed
    return residual if post_norm or z is not None else x, *cast(dtype, normed)


def _composition(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    sequence: Tensor | None,
    seed: Tensor | None,
    eps: float,
    post_norm: bool,
    dropout: float,
    drop_path: float,
) -> tuple[Tensor, Tensor]:
    if z is not None:
        if seed is not None and dropout:
            z = drop(z, dropout, seed[0])
        if seed is not None and drop_path:
            z = z * path_factors(z, drop_path, seed[1], sequence)
        x = x + z
    y = F.layer_norm(x, weight.shape, weight, bias, eps)
    return (y, y) if post_norm else (x, y)


def _fake(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    sequence: Tensor | None,
    seed: Tensor | None,
    eps: float,
    post_norm: bool,
    dropout: float,
    drop_path: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    with_residual = dtype != x.dtype if post_norm else z is not None
    return x.new_empty(x.shape if with_residual else 0), x.new_empty(x.shape, dtype=dtype)


def _fake_backward(
    d_residual: Tensor | None,
    d_normed: Tensor | None,
    x: Tensor,
    z: Tensor | None,
    weight: Tensor,
    sequence: Tensor | None,
    seed: Tensor | None,
    eps: float,
    post_norm: bool,
    dropout: float,
    drop_path: float,
    dtype: torch.dtype,
    with_z: bool,
) -> tuple[Tensor, ...]:
    with_d_z = with_z and (dropout > 0 or drop_path > 0 or dtype != x.dtype)
    d_z = x.new_empty(x.shape if with_d_z else 0, dtype=dtype)
    return x.new_empty(x.shape), d_z, torch.empty_like(weight), torch.empty_like(weight)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, z, weight, _, sequence, seed, *ctx.options = inputs
    ctx.with_z, ctx.with_residual, post_norm = z is not None, output[0].dim() == 2, ctx.options[1]
    # The sum is an output of pre-norm; post-norm computes it again from its operands, without another [T, D].
    s, branch = (x, z) if post_norm else (output[0] if ctx.with_z else x, None)
    ctx.save_for_backward(s, branch, weight, sequence, seed)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, d_residual: Tensor | None, d_normed: Tensor | None, d_passed: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    if not ctx.with_residual:
        d_residual = d_passed
    if d_residual is None and d_normed is None:
        return (None,) * 11
    args = (d_residual, d_normed, *ctx.saved_tensors, *ctx.options, ctx.with_z)
    d_x, d_z, d_weight, d_bias = call_operator("add_norm_backward", *args)
    if not ctx.with_z:
        d_z = None
    elif d_z.dim() == 1:  # it equals d_x
        d_z = d_x
    return d_x, d_z, d_weight, d_bias, *(None,) * 7


register_operator(
    "add_norm", fake=_fake, setup=_setup, backward=_backward, fake_backward=_fake_backward, passes=True
)
