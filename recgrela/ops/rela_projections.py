"""LayerNorm of the residual stream and the projections that `gated_rela` takes, as one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recgrela.ops._library import call_and_pass, call_operator, register_operator
from recgrela.ops.add_norm import add_norm
from recgrela.ops.checks import HALF, autocast_enabled, cast, check_operands, check_parameters
from recgrela.ops.linear import linear
from recgrela.ops.support import Kernel, Op

OP = Op(
    "rela_projections",
    {"cuda": Kernel((torch.float16, torch.bfloat16), widths=range(32, 65, 16))},
    None,
    "composition",
    parts=("add_norm", "linear"),
)
OUTPUTS = range(16, 129, 16)  # numbers of queries and keys that the kernel takes


def rela_projections_reference(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    qk_weight: Tensor,
    qk_bias: Tensor | None,
    *,
    eps: float = 1e-12,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The definition of `rela_projections` in plain PyTorch."""

    def layer(u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return u @ weight.T if bias is None else u @ weight.T + bias

    centered = x - x.mean(1, keepdim=True)
    variance = centered.square().mean(1, keepdim=True)
    u = centered / (variance + eps).sqrt() * norm_weight + norm_bias
    v = layer(u, in_weight, in_bias)
    gate = None if gate_weight is None else layer(u, gate_weight, gate_bias)
    return x if rows is None else x[rows], v, gate, layer(v, qk_weight, qk_bias)


def rela_projections(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    qk_weight: Tensor,
    qk_bias: Tensor | None,
    *,
    eps: float = 1e-12,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Normalizes the residual stream and projects it to what `gated_rela` takes.

    With u = LayerNorm(x), v = u @ in_weight.T + in_bias are the values, gate = u @ gate_weight.T + gate_bias
    and qk = v @ qk_weight.T + qk_bias the queries and keys, which are projected from v. The CUDA kernels for
    half precision read `x` and write v, gate and qk, and nothing else of T rows; the backward reads `x`, v
    and the gradients, and writes that of `x`. They take N up to 128, in steps of 16. Otherwise `add_norm` and
    `linear` run.

    Args:
        x: [T, D], the residual stream, any row stride: float32 under autocast, else the dtype of the results.
        norm_weight, norm_bias: [D], of the LayerNorm. Parameters are of the dtype of `x`, or float32 if that
            is half precision.
        in_weight, in_bias: [D, D], [D] or None.
        gate_weight, gate_bias: [D, D], [D] or None. Without gate_weight there is no gate.
        qk_weight, qk_bias: [N, D], [N] or None.
        eps: added to the variance.
        rows: int64 [B], distinct rows at which the residual stream continues; None: all.

    Returns:
        (residual, v, gate, qk). `residual` is `x` or its `rows`, to continue the residual stream with: its
        gradient is then added where that of `x` is computed. v [T, D], gate [T, D] or None, and qk [T, N]
        are of the dtype of autocast if it is enabled, else of `x`.

    Raises:
        ValueError: if a shape or device is wrong, or gate_bias comes without gate_weight; TypeError: if a
            dtype is.
        NotImplementedError: for second derivatives of the kernels; use `rela_projections_reference`.
    """
    op = OP.name
    if x.dim() != 2 or qk_weight.dim() != 2 or 0 in (x.shape[1], qk_weight.shape[0]):
        raise ValueError(
            f"{op}: x must be [T, D] and qk_weight [N, D] with widths above 0, got {tuple(x.shape)} and "
            f"{tuple(qk_weight.shape)}"
        )
    if gate_weight is None and gate_bias is not None:
        raise ValueError(f"{op}: gate_bias needs gate_weight; pass both or neither")
    width, outputs = x.shape[1], qk_weight.shape[0]
    check_parameters(
        op,
        "x",
        x,
        norm_weight=(norm_weight, (width,)),
        norm_bias=(norm_bias, (width,)),
        in_weight=(in_weight, (width, width)),
        in_bias=(in_bias, (width,)),
        gate_weight=(gate_weight, (width, width)),
        gate_bias=(gate_bias, (width,)),
        qk_weight=(qk_weight, (outputs, width)),
        qk_bias=(qk_bias, (outputs,)),
    )
    if rows is not None:
        check_operands(op, "x", x, rows=(rows, ("B",), torch.int64))
    dtype = rows_dtype(x)
    if has_kernel(x, outputs):
        stream = x.float() if x.dtype in HALF else x
        weights = (norm_weight, norm_bias, in_weight, in_bias, gate_weight, gate_bias, qk_weight, qk_bias)
        parameters = cast(torch.float32, *weights)
        residual, v, gate, qk = call_and_pass(op, stream, *parameters, float(eps), dtype, rows=rows)
        if stream is not x:
            residual = x if rows is None else residual.to(x.dtype)
        return residual, v, None if gate_weight is None else gate, qk
    residual, u = add_norm(x, None, norm_weight, norm_bias, eps=eps)
    if gate_weight is None:
        v, gate = linear(u, in_weight, in_bias), None
    else:
        v, gate = linear(u, in_weight, in_bias, gate_weight, gate_bias)
    return residual if rows is None else residual[rows], v, gate, linear(v, qk_weight, qk_bias)


def rows_dtype(x: Tensor) -> torch.dtype:
    """The dtype of v, gate and qk."""
    device_type = x.device.type
    if autocast_enabled(device_type) and x.is_floating_point() and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return x.dtype


def has_kernel(x: Tensor, outputs: int) -> bool:
    """Reports whether `rela_projections` of `x` with N outputs is one kernel, instead of a composition.

    It warns once if the kernel of a GPU does not take half-precision rows of such a width.
    """
    dtype = rows_dtype(x)
    if dtype not in HALF or outputs not in OUTPUTS:
        return False
    return OP.implementation(x.device.type, dtype, widths=(x.shape[1],)).kind == "kernel"


def _fake(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    qk_weight: Tensor,
    qk_bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.shape[0]
    gate = x.new_empty(0 if gate_weight is None else x.shape, dtype=dtype)
    return x.new_empty(x.shape, dtype=dtype), gate, x.new_empty(rows, qk_weight.shape[0], dtype=dtype)


def _fake_backward(
    d_residual: Tensor | None,
    d_v: Tensor | None,
    d_gate: Tensor | None,
    d_qk: Tensor | None,
    x: Tensor,
    v: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    in_weight: Tensor,
    gate_weight: Tensor | None,
    qk_weight: Tensor | None,
    eps: float,
) -> tuple[Tensor, ...]:
    def layer(weight: Tensor | None) -> tuple[Tensor, Tensor]:
        shape = (0,) if weight is None else weight.shape
        return x.new_empty(shape), x.new_empty(shape[0])

    layers = [gradient for weight in (in_weight, gate_weight, qk_weight) for gradient in layer(weight)]
    return x.new_empty(x.shape), torch.empty_like(norm_weight), torch.empty_like(norm_bias), *layers


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, norm_weight, norm_bias, *layers, ctx.eps, _ = inputs
    weights, biases = layers[::2], layers[1::2]
    ctx.has_biases = [bias is not None for bias in biases]
    ctx.save_for_backward(x, output[0], norm_weight, norm_bias, *weights)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any,
    d_v: Tensor | None,
    d_gate: Tensor | None,
    d_qk: Tensor | None,
    d_residual: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    *operands, gate_weight, qk_weight = ctx.saved_tensors
    if gate_weight is None:
        d_gate = None
    if d_v is None and d_gate is None and d_qk is None:
        return d_residual, *(None,) * 10
    # Layers whose outputs are unused are left out.
    weights = None if d_gate is None else gate_weight, None if d_qk is None else qk_weight
    gradients = (d_residual, d_v, d_gate, d_qk)
    results = call_operator("rela_projections_backward", *gradients, *operands, *weights, ctx.eps)
    d_x, d_norm_weight, d_norm_bias, *layers = results
    used = True, weights[0] is not None, weights[1] is not None
    d_layers: list[Tensor | None] = []
    for i, has_bias in enumerate(ctx.has_biases):
        d_layers += [layers[2 * i] if used[i] else None, layers[2 * i + 1] if used[i] and has_bias else None]
    return d_x, d_norm_weight, d_norm_bias, *d_layers, None, None


def _flops(x: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """2 T D (D + D + N); without the second D if there is no gate."""
    *_, in_weight, _, gate_weight, _, qk_weight, _, _, _ = args
    outputs = in_weight[0] + (0 if gate_weight is None else gate_weight[0]) + qk_weight[0]
    return 2 * x[0] * x[1] * outputs


register_operator(
    "rela_projections",
    fake=_fake,
    setup=_setup,
    backward=_backward,
    fake_backward=_fake_backward,
    flops=_flops,
    passes=True,
)
