"""Rows of a table with dropout and LayerNorm, and the table's gradient in a fixed order."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import call_operator, register_operator
from recgrela.ops.checks import cast, check_operands, gradient_like, none_for_absent, state_dtype
from recgrela.ops.dropout import check_dropout, dropout_reference, new_seeds
from recgrela.ops.dropout import dropout as drop
from recgrela.ops.support import Kernel, Op


def _composition(
    items: Tensor,
    table: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    eps: float,
    dropout: float,
    padding_idx: int,
) -> Tensor:
    x = F.embedding(items, table.to(state_dtype(table.dtype)), None if padding_idx < 0 else padding_idx)
    x = drop(x, dropout, seed)
    return (x if weight is None else F.layer_norm(x, x.shape[1:], weight, bias, eps)).to(table.dtype)


OP = Op(
    "embedding",
    {
        "cpu": Kernel((torch.float32, torch.float64)),
        "cuda": Kernel((torch.float32,), widths=range(16, 257, 16)),
    },
    _composition,
    "composition",
)


def embedding_reference(
    items: Tensor,
    table: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-12,
    dropout: float = 0.0,
    padding_idx: int | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    """The definition of `embedding` in plain PyTorch; without a seed there is no dropout."""
    x = F.embedding(items, table, padding_idx)
    if seed is not None:
        x = dropout_reference(x, dropout, seed)
    return x if weight is None else F.layer_norm(x, x.shape[1:], weight, bias, eps)


def embedding(
    items: Tensor,
    table: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-12,
    dropout: float = 0.0,
    padding_idx: int | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    """LayerNorm(drop(table[items])), or drop(table[items]) if `weight` is None.

    The forward is one pass that saves nothing but the operands. The backward sorts the rows by item and adds
    those of an item in a fixed order, so that its result is the same on every run. Autocast does not change
    the result's dtype. A half-precision table is computed in float32 and the result rounded.

    Args:
        items: int64 [T], any stride: rows of the table.
        table: [n_items, D], any floating dtype.
        weight: [D], the factor of the LayerNorm, of the dtype and device of `table`; None: no LayerNorm.
        bias: [D], the summand of the LayerNorm, or None.
        eps: added to the variance by the LayerNorm.
        dropout: rate of the dropout between look-up and LayerNorm, as for `recgrela.ops.dropout`.
        padding_idx: row of the table that gets no gradient; a negative one counts from the end.
        seed: one int64 on the device of `table`, shape [] or [1]; None draws it from PyTorch's generator.

    Returns:
        [T, D], of the dtype of `table`.

    Raises:
        ValueError: if a shape or device, the rate or `padding_idx` is wrong; TypeError: if a dtype is.
        RuntimeError: if an item is not a row of the table. On CUDA this is a device-side assertion, which a
            later call reports.
        NotImplementedError: for second derivatives of the kernels; use `embedding_reference`.
    """
    op = OP.name
    if table.dim() != 2 or 0 in table.shape:
        raise ValueError(f"{op}: table must be [n_items, D], both above 0, got shape {tuple(table.shape)}")
    n_items, width = table.shape
    check_operands(
        op,
        "table",
        table,
        items=(items, ("T",), torch.int64),
        weight=(weight, (width,)),
        bias=(bias, (width,)),
    )
    if weight is None and bias is not None:
        raise ValueError(f"{op}: bias needs weight; a LayerNorm without factor has a weight of ones")
    if padding_idx is not None and not -n_items <= padding_idx < n_items:
        raise ValueError(
            f"{op}: padding_idx must be in {-n_items} .. {n_items - 1} for {n_items} rows, got {padding_idx}"
        )
    check_dropout(op, dropout, seed, 1, table.device)
    padding_idx = -1 if padding_idx is None else padding_idx % n_items
    weight, bias = cast(state_dtype(table.dtype), weight, bias)
    kind, _ = OP.implementation(table.device.type, table.dtype, widths=(width,), warn=False)
    if dropout == 0:
        seed = None
    elif seed is None and kind == "kernel":
        seed = new_seeds(1, table.device)
    args = (items, table, weight, bias, seed, float(eps), float(dropout), padding_idx)
    return OP.run(table, *args, widths=(width,))


def _fake(items: Tensor, table: Tensor, *args: Any) -> Tensor:
    return table.new_empty(items.shape[0], table.shape[1])


def _fake_backward(
    d_y: Tensor, items: Tensor, table: Tensor, weight: Tensor | None, bias: Tensor | None, *args: Any
) -> tuple[Tensor, ...]:
    return tuple(gradient_like(x, table) for x in (table, weight, bias))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, ctx.dropout, ctx.padding_idx = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors  # checkpointing lets them be read once
    options = (ctx.eps, ctx.dropout, ctx.padding_idx)
    gradients = call_operator("embedding_backward", d_y, *tensors, *options)
    return None, *none_for_absent(gradients, tensors[1:4]), None, None, None, None


register_operator("embedding", fake=_fake, setup=_setup, backward=_backward, fake_backward=_fake_backward)
