"""A linear layer, or two that read the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import call_and_pass, call_operator, register_operator
from recgrela.ops.checks import (
    autocast_enabled,
    cast,
    cast_for_autocast,
    check_parameters,
    gradient_like,
    has_half_kernels,
    none_for_absent,
    state_dtype,
)
from recgrela.ops.support import Kernel, Op

OP = Op(
    "linear",
    {"cuda": Kernel((torch.float32, torch.float16, torch.bfloat16), widths=range(16, 513, 16))},
    None,
    "composition",
    outputs_like_operands=(0, 1),
)


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
@overload
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    weight2: None = ...,
    bias2: None = ...,
    *,
    return_x: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None = ...,
    *,
    return_x: Literal[True],
) -> tuple[Tensor, Tensor, Tensor]: ...
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    weight2: Tensor | None = None,
    bias2: Tensor | None = None,
    *,
    return_x: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """x @ weight.T + bias, and the same with weight2 and bias2 if they are given.

    The CUDA kernels read `x` once for both layers, and the backward computes all gradients from one read of
    `x` and of the outputs' gradients. They take widths, and a sum of O and P, up to 512. On the CPU, and for
    operands that the kernels do not take, PyTorch's linear layers run.

    Args:
        x: [T, I], any row stride, any floating dtype.
        weight, bias: [O, I], [O] or None. Parameters are of the dtype of `x`, or float32 if `x` has half
            precision, which rounds them.
        weight2, bias2: [P, I], [P] or None: a second layer that reads the same rows.
        return_x: whether to return `x` too. What else is computed from `x` should take what is returned:
            its gradient is then added where that of `x` is computed, without another pass over the rows.

    Returns:
        y [T, O], or y and y2 [T, P], of the dtype of `x`, or of autocast if it is enabled; with `return_x`,
        followed by `x`.

    Raises:
        ValueError: if a shape or device is wrong, or bias2 comes without weight2; TypeError: if a dtype is.
        NotImplementedError: for second derivatives of the kernel; use `linear_reference`.
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
    device_type = x.device.type
    rows = cast_for_autocast(device_type, x)[0] if has_half_kernels(device_type) else x
    widths = (width, out) if weight2 is None else (width, out, weight2.shape[0], out + weight2.shape[0])
    takes = OP.implementation(device_type, rows.dtype, widths=widths).kind == "kernel"
    if takes and _fits_device(rows, widths[-1]):
        weight, bias, weight2, bias2 = cast(state_dtype(x.dtype), weight, bias, weight2, bias2)
        if return_x and rows is x:
            x, y, y2 = call_and_pass(op, x, weight, bias, weight2, bias2)
        else:
            y, y2 = OP.run(rows, rows, weight, bias, weight2, bias2, widths=widths)
        if return_x:
            return (y, x) if weight2 is None else (y, y2, x)
        return y if weight2 is None else (y, y2)
    if not autocast_enabled(device_type):
        weight, bias, weight2, bias2 = cast(x.dtype, weight, bias, weight2, bias2)
    y = F.linear(x, weight, bias)
    if weight2 is None:
        return (y, x) if return_x else y
    y2 = F.linear(x, weight2, bias2)
    return (y, y2, x) if return_x else (y, y2)


# float32 layers with more outputs need this many bytes of shared memory for a block of the backward.
_MANY_OUTPUTS, _MANY_OUTPUTS_BYTES = 320, 116 << 10


def _fits_device(x: Tensor, outputs: int) -> bool:
    """Whether the device of `x` has enough shared memory; warns once if not."""
    if x.dtype != torch.float32 or outputs <= _MANY_OUTPUTS or x.device.type != "cuda":
        return True
    properties: Any = torch.cuda.get_device_properties(x.device)
    fits = properties.shared_memory_per_block_optin >= _MANY_OUTPUTS_BYTES
    if not fits and not torch.compiler.is_compiling():
        OP.warn_once(f"more than {_MANY_OUTPUTS} outputs of float32 rows on this GPU")
    return fits


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, weight2: Tensor | None, bias2: Tensor | None
) -> tuple[Tensor, Tensor]:
    second = (0,) if weight2 is None else (x.shape[0], weight2.shape[0])
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(second)


def _fake_backward(
    d_y: Tensor, d_y2: Tensor | None, d_passed: Tensor | None, x: Tensor, weight: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    *parameters, needs_d_x = others
    d_x = x.new_empty(x.shape if needs_d_x else 0)
    return d_x, *(gradient_like(t, weight) for t in (weight, *parameters))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, d_y: Tensor | None, d_y2: Tensor | None, d_passed: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    x, weight, bias, weight2, bias2 = ctx.saved_tensors
    if d_y is None and (d_y2 is None or weight2 is None):
        return d_passed, *(None,) * 4
    if d_y is None:
        d_y = x.new_zeros(x.shape[0], weight.shape[0])
    if weight2 is None:
        d_y2 = None
    elif d_y2 is None:
        d_y2 = x.new_zeros(x.shape[0], weight2.shape[0])
    needs_d_x = ctx.needs_input_grad[0]
    args = (d_y, d_y2, d_passed, x, weight, bias, weight2, bias2, needs_d_x)
    d_x, *gradients = call_operator("linear_backward", *args)
    d_parameters = none_for_absent(tuple(gradients), (weight, bias, weight2, bias2))
    return d_x if needs_d_x else None, *d_parameters


def _flops(
    x: Sequence[int],
    weight: Sequence[int],
    bias: object,
    weight2: Sequence[int] | None,
    *args: Any,
    **kwargs: Any,
) -> int:
    """2 T I (O + P)."""
    return 2 * x[0] * x[1] * (weight[0] + (0 if weight2 is None else weight2[0]))


register_operator(
    "linear",
    fake=_fake,
    setup=_setup,
    backward=_backward,
    fake_backward=_fake_backward,
    flops=_flops,
    passes=True,
)
