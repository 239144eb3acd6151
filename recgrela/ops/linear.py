"""A linear layer, or two that read the same rows."""

from __future__ import annotations

from typing import overload

import torch.nn.functional as F
from torch import Tensor

from recgrela.ops.checks import autocast_enabled, cast, check_parameters
from recgrela.ops.support import Op

OP = Op("linear", {}, None, "composition")


def linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    weight2: Tensor | None = None,
    bias2: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition of `linear` in plain PyTorch."""
    y = x @ weight.T if bias is None else x @ weight.T + bias
    if weight2 is None:
        return y
    return y, x @ weight2.T if bias2 is None else x @ weight2.T + bias2


@overload
def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = ..., weight2: None = ..., bias2: None = ...
) -> Tensor: ...
@overload
def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, weight2: Tensor, bias2: Tensor | None = ...
) -> tuple[Tensor, Tensor]: ...
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    weight2: Tensor | None = None,
    bias2: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """x @ weight.T + bias, and the same with weight2 and bias2 if they are given.

    Args:
        x: [T, I], any row stride, any floating dtype.
        weight, bias: [O, I], [O] or None. Parameters are of the dtype of `x`, or float32 if `x` has half
            precision, which rounds them.
        weight2, bias2: [P, I], [P] or None: a second layer that reads the same rows.

    Returns:
        y [T, O], or y and y2 [T, P], of the dtype of `x`, or of autocast if it is enabled.

    Raises:
        ValueError: if a shape or device is wrong, or bias2 comes without weight2; TypeError: if a dtype is.
    """
    op = OP.name
    if x.dim() != 2 or weight.dim() != 2 or 0 in (x.shape[1], weight.shape[0]):
        raise ValueError(
            f"{op}: x must be [T, I] and weight [O, I] with widths above 0, got {tuple(x.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if weight2 is None and bias2 is not None:
        raise ValueError(f"{op}: bias2 needs weight2; pass both or neither")
    width, out = x.shape[1], weight.shape[0]
    out2 = weight2.shape[0] if weight2 is not None and weight2.dim() else "P"
    if out2 == 0:
        raise ValueError(f"{op}: weight2 must be [P, {width}] with P above 0, got shape {(0, width)}")
    check_parameters(
        op,
        "x",
        x,
        weight=(weight, (out, width)),
        bias=(bias, (out,)),
        weight2=(weight2, (out2, width)),
        bias2=(bias2, (out2,)),
    )
    if not autocast_enabled(x.device.type):
        weight, bias, weight2, bias2 = cast(x.dtype, weight, bias, weight2, bias2)
    y = F.linear(x, weight, bias)
    return y if weight2 is None else (y, F.linear(x, weight2, bias2))
