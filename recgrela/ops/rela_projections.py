"""LayerNorm of the residual stream and the projections that `gated_rela` takes, as one op."""

from __future__ import annotations

from torch import Tensor

from recgrela.ops.add_norm import add_norm
from recgrela.ops.checks import check_parameters
from recgrela.ops.linear import linear
from recgrela.ops.support import Op

OP = Op("rela_projections", {}, None, "composition")


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
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The definition of `rela_projections` in plain PyTorch."""

    def layer(u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return u @ weight.T if bias is None else u @ weight.T + bias

    centered = x - x.mean(1, keepdim=True)
    variance = centered.square().mean(1, keepdim=True)
    u = centered / (variance + eps).sqrt() * norm_weight + norm_bias
    v = layer(u, in_weight, in_bias)
    gate = None if gate_weight is None else layer(u, gate_weight, gate_bias)
    return x, v, gate, layer(v, qk_weight, qk_bias)


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
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Normalizes the residual stream and projects it to what `gated_rela` takes.

    With u = LayerNorm(x), v = u @ in_weight.T + in_bias are the values, gate = u @ gate_weight.T + gate_bias
    and qk = v @ qk_weight.T + qk_bias the queries and keys, which are projected from v.

    Args:
        x: [T, D], the residual stream, any row stride: float32 under autocast, else the dtype of the results.
        norm_weight, norm_bias: [D], of the LayerNorm. Parameters are of the dtype of `x`, or float32 if that
            is half precision.
        in_weight, in_bias: [D, D], [D] or None.
        gate_weight, gate_bias: [D, D], [D] or None. Without gate_weight there is no gate.
        qk_weight, qk_bias: [N, D], [N] or None.
        eps: added to the variance.

    Returns:
        (residual, v, gate, qk). `residual` is `x`, to continue the residual stream with: its gradient then
        is added where that of `x` is computed. v [T, D], gate [T, D] or None, and qk [T, N] are of the dtype
        of autocast if it is enabled, else of `x`.

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
    residual, u = add_norm(x, None, norm_weight, norm_bias, eps=eps)
    if gate_weight is None:
        v, gate = linear(u, in_weight, in_bias), None
    else:
        v, gate = linear(u, in_weight, in_bias, gate_weight, gate_bias)
    return residual, v, gate, linear(v, qk_weight, qk_bias)
