"""Rows of a table with dropout and LayerNorm, and the table's gradient in a fixed order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops.checks import check_operands, state_dtype
from recgrela.ops.dropout import check_dropout, dropout_reference
from recgrela.ops.dropout import dropout as drop
from recgrela.ops.support import Op

OP = Op("embedding", {}, None, "composition")


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

    Autocast does not change the result's dtype. Rows of a half-precision table are computed in float32 and
    rounded at the end.

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
        IndexError: if an item is not a row of the table. On CUDA this is a device-side assertion, which a
            later call reports.
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
    computed = state_dtype(table.dtype)
    x = drop(F.embedding(items, table, padding_idx).to(computed), dropout, seed)
    if weight is not None:
        x = F.layer_norm(x, (width,), weight.to(computed), None if bias is None else bias.to(computed), eps)
    return x.to(table.dtype)
