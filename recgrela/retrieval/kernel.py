"""The CPU kernel: its operator, and the table as it reads it.

The kernel scans bounds of scores, from rows rounded to int8 or from the float32 rows, and scores exactly the
few items whose upper bound reaches the k-th best. A row is w = s q + e, with integers q of -127 .. 127, a
scale s and an error e; a query h = t p + r likewise. Then, by the Cauchy-Schwarz inequality,

    |h . w - s t (p . q)| <= |h| |e| + |r| |s q| = s (|h| |e| / s + |r| |q|),

where the kernel takes the maxima of |e| / s and |q| over a block of rows, so that a row needs no number but
its scale. Slack for rounding is added in csrc/cpu/top_k.inl.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import call_operator, register_without_gradient
from recgrela.retrieval.reference import max_numbers_of

BLOCK = 32  # rows of a block
MAX_CODE = 127
ROUNDED_UP = 1 + 2.0**-20  # makes a float64 number an upper bound after rounding to float32
SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Table:
    """The table as the kernel reads it.

    Attributes:
        bounds: float32 [blocks, 4], of each block the maxima of |e| / s, |q|, |w| and |bias|.
        codes: int8 [blocks, ceil(D / 4), 32, 4], q of the rows; None: the kernel reads the float32 rows.
        scales: float32 [32 blocks], s of the rows.
        biases: float32 [32 blocks], the bias in the order of the rows; None without a bias or codes.
        order: int32 [32 blocks], the items of the rows, those with large norms first, so that blocks of small
            norms are skipped; 0 after the last.
    """

    bounds: Tensor
    codes: Tensor | None = None
    scales: Tensor | None = None
    biases: Tensor | None = None
    order: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """The tensors that exist."""
        found = (self.bounds, self.codes, self.scales, self.biases, self.order)
        return [x for x in found if x is not None]


def float32_table(norms: Tensor, bias: Tensor | None) -> Table:
    """The table for the search of float32 rows with upper bounds of their norms, [N]."""
    zeros = torch.zeros_like(norms)
    columns = (zeros, zeros, norms, zeros if bias is None else bias.abs())
    return Table(torch.stack([_block_maxima(x) for x in columns], 1))


def int8_table(weight: Tensor, norms: Tensor, bias: Tensor | None) -> Table:
    """The table for the search of rows rounded to int8, made in blocks of rows."""
    n_items, dim = weight.shape
    n_blocks, padded = -(-n_items // BLOCK), -(-dim // 4) * 4
    order = weight.new_zeros(n_blocks * BLOCK, dtype=torch.int32)
    order[:n_items] = norms.argsort(descending=True, stable=True)
    codes = weight.new_empty(n_blocks, padded // 4, BLOCK, 4, dtype=torch.int8)
    scales, errors, code_norms = weight.new_zeros(3, n_blocks * BLOCK).unbind()
    step = max(1, max_numbers_of(weight.device) // (padded * BLOCK)) * BLOCK
    for start in range(0, n_items, step):
        stop = min(start + step, n_items)
        rows = weight[order[start:stop]]
        scale = (rows.abs().amax(1) / MAX_CODE).clamp_(min=SMALLEST)
        q = (rows / scale[:, None]).round_().clamp_(-MAX_CODE, MAX_CODE)
        error = rows.double() - scale.double()[:, None] * q.double()
        errors[start:stop] = torch.linalg.vector_norm(error, dim=1) / scale.double() * ROUNDED_UP
        code_norms[start:stop] = torch.linalg.vector_norm(q.double(), dim=1) * ROUNDED_UP
        scales[start:stop] = scale
        end = -(-stop // BLOCK) * BLOCK
        blocks = F.pad(q.to(torch.int8), (0, padded - dim, 0, end - stop)).view(-1, BLOCK, padded // 4, 4)
        codes[start // BLOCK : end // BLOCK] = blocks.transpose(1, 2)
    ids = order[:n_items]
    biases = None if bias is None else F.pad(bias[ids], (0, len(order) - n_items))
    magnitudes = weight.new_zeros(n_items) if bias is None else bias[ids].abs()
    columns = (errors[:n_items], code_norms[:n_items], norms[ids], magnitudes)
    return Table(torch.stack([_block_maxima(x) for x in columns], 1), codes, scales, biases, order)


def search(
    queries: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    table: Table,
    k: int,
    excluded: tuple[Tensor, Tensor] | None,
    allowed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The k best items and their scores, [B, k] each."""
    items, offsets = (None, None) if excluded is None else excluded
    own = (table.bounds, table.codes, table.scales, table.biases, table.order)
    return call_operator("top_k", queries, weight, bias, *own, k, items, offsets, allowed)


def _block_maxima(x: Tensor) -> Tensor:
    """The maxima of the blocks of non-negative x, [blocks]."""
    return F.pad(x, (0, -len(x) % BLOCK)).view(-1, BLOCK).amax(1)


def _fake(
    queries: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bounds: Tensor,
    codes: Tensor | None,
    scales: Tensor | None,
    biases: Tensor | None,
    order: Tensor | None,
    k: int,
    excluded: Tensor | None,
    cu_excluded: Tensor | None,
    allowed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape, dtype=torch.int64), queries.new_empty(shape)


register_without_gradient("top_k", fake=_fake)
