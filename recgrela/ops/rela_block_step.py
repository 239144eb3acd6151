"""A whole RecGRELA block for one more row of each sequence; the state is updated in place."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import register_in_place
from recgrela.ops.checks import (
    HALF,
    autocast_enabled,
    cast_parameters,
    check_operands,
    refuse_gradients,
    state_dtype,
)
from recgrela.ops.gated_rela import RelaState, gated_rela_step, gated_rela_step_reference
from recgrela.ops.gated_rela.step import check_rela_step, flops_of_step
from recgrela.ops.linear import linear
from recgrela.ops.mlp import ACTIVATIONS, MLPActivation
from recgrela.ops.mlp_block import mlp_block
from recgrela.ops.rela_projections import rela_projections
from recgrela.ops.support import Kernel, Op

OP = Op(
    "rela_block_step",
    {"cpu": Kernel((torch.float32, torch.float64))},
    None,
    "composition",
    parts=("rela_projections", "gated_rela_step", "linear", "mlp_block"),
    in_place=(1, 2, 3),
)
# The kernel does not pack weights, so that for more rows the matrix products of the composition are faster.
MAX_ROWS = 128


def rela_block_step_reference(
    x: Tensor,
    state: RelaState,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    qk_weight: Tensor,
    qk_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm2_weight: Tensor,
    norm2_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    num_heads: int,
    turns: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    eps: float = 1e-6,
    norm_eps: float = 1e-12,
    activation: MLPActivation = "gelu",
) -> Tensor:
    """The definition of `rela_block_step` in plain PyTorch."""
    width = (x.shape[1],)
    u = F.layer_norm(x, width, norm1_weight, norm1_bias, norm_eps)
    v = F.linear(u, in_weight, in_bias)
    gate = None if gate_weight is None else F.linear(u, gate_weight, gate_bias)
    attended = gated_rela_step_reference(
        F.linear(v, qk_weight, qk_bias),
        None,
        v,
        gate,
        state,
        num_heads=num_heads,
        turns=turns,
        conv_weight=conv_weight,
        conv_bias=conv_bias,
        eps=eps,
    )
    s = x + F.linear(attended, out_weight, out_bias)
    normed = F.layer_norm(s, width, norm2_weight, norm2_bias, norm_eps)
    return s + F.linear(ACTIVATIONS[activation](F.linear(normed, w1, b1)), w2, b2)


def rela_block_step(
    x: Tensor,
    state: RelaState,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    qk_weight: Tensor,
    qk_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm2_weight: Tensor,
    norm2_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    num_heads: int,
    turns: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    eps: float = 1e-6,
    norm_eps: float = 1e-12,
    activation: MLPActivation = "gelu",
) -> Tensor:
    """A RecGRELA block in evaluation of the next row of each sequence, whose state is updated in place.

    With u = LayerNorm(x), v, gate and qk as in `rela_projections`, and y of `gated_rela_step`, it returns
    `mlp_block` of `x` and y @ out_weight.T + out_bias. The CPU kernel passes up to 128 rows through the whole
    block, a few at a time, without the time that calls of operators take; in compiled and exported graphs it
    takes any number. Otherwise, and under autocast, the four ops run.

    Args:
        x: [B, D], one row of each sequence; a floating dtype.
        state: the state before the row, as for `gated_rela_step`.
        norm1_weight, norm1_bias: [D], of the LayerNorm before the attention. Parameters are float64 for
            float64 rows, else float32; half precision is converted.
        in_weight, in_bias: [D, D], [D].
        gate_weight, gate_bias: [D, D], [D]; None: no gate.
        qk_weight, qk_bias: [2 D, D], [2 D], queries and keys of v.
        out_weight, out_bias: [D, D], [D].
        norm2_weight, norm2_bias: [D], of the LayerNorm before the MLP.
        w1, b1, w2, b2: [F, D], [F], [D, F], [D], of the MLP.
        num_heads, turns, conv_weight, conv_bias, eps: as for `gated_rela_step`.
        norm_eps: added to the variance by both LayerNorms.
        activation: "none", "relu", "silu" or "gelu" (the exact one, by erf).

    Returns:
        [B, D], of the dtype of `x`, or float32 if autocast converts that.

    Raises:
        TypeError, ValueError: if an operand has a wrong shape, dtype, stride or device; the message names it.
        NotImplementedError: if a gradient is needed; use these ops with `gated_rela` and `initial_state`.
    """
    op = OP.name
    if x.dim() != 2 or w1 is None or w1.dim() != 2 or 0 in (x.shape[1], w1.shape[0]):
        shape = None if w1 is None else tuple(w1.shape)
        raise ValueError(
            f"{op}: x must be [B, D] and w1 [F, D] with widths above 0, got {tuple(x.shape)} and {shape}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if (gate_weight is None) != (gate_bias is None):
        raise ValueError(f"{op}: gate_weight and gate_bias go together; pass both or neither")
    width, hidden = x.shape[1], w1.shape[0]
    wide = state_dtype(x.dtype)
    parameters: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "norm1_weight": (norm1_weight, (width,)),
        "norm1_bias": (norm1_bias, (width,)),
        "in_weight": (in_weight, (width, width)),
        "in_bias": (in_bias, (width,)),
        "gate_weight": (gate_weight, (width, width)),
        "gate_bias": (gate_bias, (width,)),
        "qk_weight": (qk_weight, (2 * width, width)),
        "qk_bias": (qk_bias, (2 * width,)),
        "out_weight": (out_weight, (width, width)),
        "out_bias": (out_bias, (width,)),
        "norm2_weight": (norm2_weight, (width,)),
        "norm2_bias": (norm2_bias, (width,)),
        "w1": (w1, (hidden, width)),
        "b1": (b1, (hidden,)),
        "w2": (w2, (width, hidden)),
        "b2": (b2, (width,)),
    }
    if absent := [n for n, (p, _) in parameters.items() if p is None and not n.startswith("gate")]:
        raise TypeError(f"{op}: {absent[0]} must be a tensor, got None")
    tensors = [p for p, _ in parameters.values()]
    refuse_gradients(op, "gated_rela with initial_state", x, *state, *tensors, conv_weight, conv_bias)
    typed: Any = {
        n: (p, shape, p.dtype if p is not None and p.dtype in HALF else wide)
        for n, (p, shape) in parameters.items()
    }
    check_operands(op, "x", x, **typed)
    conv_weight, conv_bias = cast_parameters(wide, conv_weight, conv_bias)
    head_dim, _ = check_rela_step(op, "x", x, state, num_heads, turns, conv_weight, conv_bias)
    # A trace always takes the kernel, because it must not depend on the number of rows.
    few = torch.compiler.is_compiling() or x.shape[0] <= MAX_ROWS
    kind = OP.implementation(x.device.type, x.dtype, head_dim=head_dim).kind
    with_kernel = kind == "kernel" and few and not autocast_enabled(x.device.type)
    if with_kernel or x.dtype not in HALF:  # the composition takes half precision as it is
        tensors = list(cast_parameters(wide, *tensors))
    rela = (turns, conv_weight, conv_bias, num_heads, float(eps), float(norm_eps))
    operands: tuple[Any, ...] = (x, *state, *tensors, *rela, activation)
    y: Tensor = OP.run(x, *operands, head_dim=head_dim) if with_kernel else _compose(*operands)
    return y


def _compose(x: Tensor, *operands: Any) -> Tensor:
    """The block by other ops, from the operator's arguments."""
    state, parameters = RelaState(*operands[:3]), operands[3:19]
    turns, conv_weight, conv_bias, num_heads, eps, norm_eps, activation = operands[19:]
    _, v, gate, qk = rela_projections(x, *parameters[:8], eps=norm_eps)
    y = gated_rela_step(
        qk,
        None,
        v,
        gate,
        state,
        num_heads=num_heads,
        turns=turns,
        conv_weight=conv_weight,
        conv_bias=conv_bias,
        eps=eps,
    )
    attended = linear(y, *parameters[8:10])
    stream = x.float() if x.dtype in HALF else x
    y = mlp_block(stream, attended, *parameters[10:], eps=norm_eps, activation=activation)
    return y if autocast_enabled(x.device.type) else y.to(x.dtype)


def _fake(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(x.shape)


def _flops(*args: Any, **kwargs: Any) -> int:
    """2 B elements of every weight matrix, and the operations of `gated_rela_step`."""
    x, *_ = args
    weights = [p for p in args[4:20] if p is not None and len(p) == 2]
    return 2 * x[0] * sum(map(math.prod, weights)) + flops_of_step(x, args[21], args[23])


register_in_place("rela_block_step", fake=_fake, flops=_flops)
