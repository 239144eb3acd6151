"""The second half of a pre-norm block: the LayerNorm before an MLP and the residual addition behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from recgrela.ops._library import call_operator, register_operator
from recgrela.ops.add_norm import add_norm, add_norm_reference, path_factors
from recgrela.ops.checks import (
    HALF,
    autocast_enabled,
    cast_parameters,
    check_operands,
    state_dtype,
)
from recgrela.ops.dropout import check_dropout, check_rate, new_seeds
from recgrela.ops.mlp import MLPActivation, mlp, mlp_reference
from recgrela.ops.support import Kernel, Op

OP = Op(
    "mlp_block",
    {"cuda": Kernel((torch.float32, torch.float16, torch.bfloat16), widths=range(32, 65, 16))},
    None,
    "composition",
    parts=("add_norm", "mlp"),
)


def mlp_block_reference(
    x: Tensor,
    z: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    eps: float = 1e-12,
    activation: MLPActivation = "gelu",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    sequence: Tensor | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    """The definition of `mlp_block` in plain PyTorch; without a seed there is no dropout and no DropPath."""
    if z is not None and seed is not None:
        z = z * path_factors(z, drop_path, seed[0], sequence)
    s, normed = add_norm_reference(x, z, norm_weight, norm_bias, eps=eps)
    seeds = None if seed is None else seed[1:]
    w1, b1, w2, b2 = (p.to(normed.dtype) for p in (w1, b1, w2, b2))
    return s + mlp_reference(normed, w1, b1, w2, b2, activation=activation, dropout=dropout, seed=seeds)


def mlp_block(
    x: Tensor,
    z: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    eps: float = 1e-12,
    activation: MLPActivation = "gelu",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    sequence: Tensor | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    """s + drop(drop(act(LayerNorm(s) @ w1.T + b1)) @ w2.T + b2), where s = x + path * z.

    This is `add_norm` in pre-norm, `mlp` and the residual addition. The CUDA kernels do it in one pass over
    rows, which saves s in float32 for the backward, and no other tensor of T rows. They take F up to 512, or
    256 for float32 rows, and less on GPUs with little shared memory. Elsewhere the three ops run. `path` is
    DropPath (Huang et al., 2016), which drops the branch of a whole sequence.

    Args:
        x: [T, D], the residual stream: float32 if `z` is half precision or autocast is enabled, else the
            dtype of `z`.
        z: [T, D], the branch that is added to it first; None: s = x.
        norm_weight, norm_bias: [D]. Parameters are float32 for half-precision rows, else of the dtype of `x`.
        w1, b1: [F, D], [F].
        w2, b2: [D, F], [D].
        eps: added to the variance.
        activation: "none", "relu", "silu" or "gelu" (the exact one, by erf).
        dropout: rate of both dropouts of the MLP, as for `recgrela.ops.dropout`.
        drop_path: rate at which sequences drop their branch `z`.
        sequence: int64 [T], the index of each row's sequence, for `drop_path`; None: each row is a sequence.
        seed: int64 [3], for DropPath, the hidden layer and its output; None draws them from PyTorch's
            generator of the device.

    Returns:
        [T, D], of the dtype of `x`, or float32 if that is half precision or converted by autocast. The rows
        of the norm and of the MLP have the dtype of autocast if it is enabled, else of `z`, or of `x` if `z`
        is None.

    Raises:
        ValueError: if a shape or device, the activation or a rate is wrong; TypeError: if a dtype is.
        RuntimeError: for dropout of more than 2^32 elements.
        NotImplementedError: for second derivatives of the kernel; use `mlp_block_reference`.
    """
    op = OP.name
    if activation not in get_args(MLPActivation):
        names = ", ".join(get_args(MLPActivation))
        raise ValueError(f"{op}: activation must be one of {names}, got {activation!r}")
    if x.dim() != 2 or w1.dim() != 2 or 0 in (x.shape[1], w1.shape[0]):
        raise ValueError(
            f"{op}: x must be [T, D] and w1 [F, D] with widths above 0, got {tuple(x.shape)} and "
            f"{tuple(w1.shape)}"
        )
    (rows, width), hidden = x.shape, w1.shape[0]
    check_dropout(op, dropout, seed, 3, x.device)
    check_rate(op, "drop_path", drop_path)
    dtype, stream, branch = rows_dtype(x, z), x, z
    if autocast_enabled(x.device.type) and x.is_floating_point() and x.dtype != torch.float64:
        stream = x.float()
        branch = z if z is None or not z.is_floating_point() else z.to(dtype)
    elif z is None and x.dtype in HALF:
        stream = x.float()
    wide = state_dtype(dtype)
    norm_weight, norm_bias, w1, b1, w2, b2 = cast_parameters(wide, norm_weight, norm_bias, w1, b1, w2, b2)
    check_operands(
        op,
        "x" if z is None else "z",
        stream if branch is None else branch,
        z=(branch, (rows, width), dtype),
        x=(stream, (rows, width), wide),
        norm_weight=(norm_weight, (width,), wide),
        norm_bias=(norm_bias, (width,), wide),
        w1=(w1, (hidden, width), wide),
        b1=(b1, (hidden,), wide),
        w2=(w2, (width, hidden), wide),
        b2=(b2, (width,), wide),
        sequence=(sequence, (rows,), torch.int64),
    )
    if z is None:
        drop_path = 0.0
    if not (dropout or drop_path):
        seed = None
    elif seed is None:
        seed = new_seeds(3, x.device)
    if not drop_path:
        sequence = None
    if has_kernel(x, z, hidden):
        parameters = (norm_weight, norm_bias, w1, b1, w2, b2)
        options = (float(eps), activation, float(dropout), float(drop_path), dtype)
        _, y = call_operator("mlp_block", stream, branch, *parameters, sequence, seed, *options)
        return y
    # add_norm takes the seed of DropPath second.
    path_seed, mlp_seed = (None, None) if seed is None else (seed.view(3)[:2].flip(0), seed.view(3)[1:])
    residual, normed = add_norm(
        x, z, norm_weight, norm_bias, eps=eps, drop_path=drop_path, sequence=sequence, seed=path_seed
    )
    y = mlp(normed, w1, b1, w2, b2, activation=activation, dropout=dropout, seed=mlp_seed)
    return (stream if z is None else residual) + y


def rows_dtype(x: Tensor, z: Tensor | None) -> torch.dtype:
    """The dtype of the rows of the norm and of the MLP."""
    device_type = x.device.type
    if autocast_enabled(device_type) and x.is_floating_point() and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return x.dtype if z is None else z.dtype


# The widest hidden layers that the kernels take, by the bytes of shared memory that a block may have.
_KIB = 1 << 10
_MAX_HIDDEN_HALF = ((163 * _KIB, 512), (99 * _KIB, 256))
_MAX_HIDDEN_FLOAT32 = ((227 * _KIB, 256), (163 * _KIB, 128))


def has_kernel(x: Tensor, z: Tensor | None, hidden: int) -> bool:
    """Whether the kernel takes such rows and a hidden layer of this width; warns once if a GPU's does not."""
    device, dtype = x.device, rows_dtype(x, z)
    if OP.implementation(device.type, dtype, widths=(x.shape[1],)).kind != "kernel":
        return False
    memory = 227 * _KIB
    if device.type == "cuda" and torch.cuda.is_initialized():
        properties: Any = torch.cuda.get_device_properties(device)
        memory = properties.shared_memory_per_block_optin
    limits = _MAX_HIDDEN_FLOAT32 if dtype == torch.float32 else _MAX_HIDDEN_HALF
    limit = next((limit for least, limit in limits if memory >= least), 0)
    if hidden > limit and device.type == "cuda" and not torch.compiler.is_compiling():
        OP.warn_once(f"hidden layers of more than {limit} features of such rows on this GPU")
    return hidden <= limit


def _fake(x: Tensor, z: Tensor | None, *args: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(0 if z is None else x.shape), x.new_empty(x.shape)


def _fake_backward(d_y: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *_, drop_path, dtype, with_z = args
    with_d_z = with_z and (drop_path > 0 or dtype != x.dtype)
    d_z = x.new_empty(x.shape if with_d_z else 0, dtype=dtype)
    return x.new_empty(x.shape), d_z, *(p.new_empty(p.shape) for p in args[:6])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, z, *others = inputs
    *tensors, ctx.eps, ctx.activation, ctx.dropout, ctx.drop_path, ctx.dtype = others
    ctx.with_z = z is not None
    ctx.mark_non_differentiable(output[0])
    ctx.set_materialize_grads(False)  # no zeros for the sum
    ctx.save_for_backward(output[0] if ctx.with_z else x, *tensors)


def _backward(ctx: Any, d_sum: None, d_y: Tensor | None) -> tuple[Tensor | None, ...]:
    if d_y is None:
        return (None,) * 15
    options = (ctx.eps, ctx.activation, ctx.dropout, ctx.drop_path, ctx.dtype, ctx.with_z)
    d_x, d_z, *gradients = call_operator("mlp_block_backward", d_y, *ctx.saved_tensors, *options)
    if not ctx.with_z:
        d_z = None
    elif d_z.dim() == 1:  # it equals d_x
        d_z = d_x
    return d_x, d_z, *gradients, *(None,) * 7


def _flops(x: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """4 T D F, for a hidden layer of width F."""
    w1, w2 = args[3], args[5]
    return 2 * x[0] * (math.prod(w1) + math.prod(w2))


register_operator(
    "mlp_block", fake=_fake, setup=_setup, backward=_backward, fake_backward=_fake_backward, flops=_flops
)
