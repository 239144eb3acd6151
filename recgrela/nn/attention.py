"""Post-norm attention of sequences in dense form: softmax over the items before, and LinRec's linear one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.nn.basic import Dropout
from recgrela.nn.sequences import Sequences


def heads_of(dense: Tensor, num_heads: int) -> Tensor:
    """[B, L, D] -> [B, H, L, D / H], a view."""
    return dense.unflatten(2, (num_heads, -1)).transpose(1, 2)


class PostNormAttention(nn.Module):
    """LN(Drop(dense(mix(q, k, v))) + x), in the form of RecBole's encoders.

    Args:
        hidden_size: D.
        num_heads: divides D.
        dropout: rate behind the output projection.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(hidden_size, 3 * hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)

    def project(self, x: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, D] -> q [T, D], or of the rows [B, D], and k, v [T, D]."""
        if rows is None:
            q, k, v = self.qkv_proj(x).chunk(3, dim=1)
            return q, k, v
        weight, bias, d = self.qkv_proj.weight, self.qkv_proj.bias, x.shape[1]
        k, v = F.linear(x, weight[d:], bias[d:]).chunk(2, dim=1)
        return F.linear(x[rows], weight[:d], bias[:d]), k, v

    def close(self, mixed: Tensor, x: Tensor, rows: Tensor | None) -> Tensor:
        """The heads' results [B, H, L, d] or, of one row of each sequence, [B, H, 1, d] back on the rows."""
        residual = x if rows is None else x[rows]
        return self.norm(self.dropout(self.out_proj(mixed)) + residual)

    def dense_queries(self, q: Tensor, sequences: Sequences, rows: Tensor | None) -> Tensor:
        """[B, H, L, d], or [B, H, 1, d] of one row of each sequence."""
        return heads_of(sequences.to_dense(q) if rows is None else q[:, None], self.num_heads)

    @staticmethod
    def rows_of(mixed: Tensor, sequences: Sequences, rows: Tensor | None) -> Tensor:
        """[B, H, L, d] -> [T, D], or [B, H, 1, d] -> [B, D]."""
        dense = mixed.transpose(1, 2).flatten(2)
        return sequences.to_rows(dense) if rows is None else dense[:, 0]


class CausalAttention(PostNormAttention):
    """Softmax attention of each row to the items up to its own.

    Args:
        hidden_size, num_heads, dropout: as above.
        attention_dropout: rate on the attention's weights.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__(hidden_size, num_heads, dropout)
        self.attention_dropout = attention_dropout

    def forward(self, x: Tensor, sequences: Sequences, rows: Tensor | None = None) -> Tensor:
        """x: [T, D] -> [T, D]; or with `rows` [B], the last item of each sequence, -> [B, D]."""
        return self.attend(*self.project(x, rows), x, sequences, rows)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, sequences: Sequences, rows: Tensor | None
    ) -> Tensor:
        """The same from projected rows."""
        keys, values = (heads_of(sequences.to_dense(t), self.num_heads) for t in (k, v))
        mask = None
        if rows is not None:
            mask = sequences.items(keys.shape[2])[:, None, None]
        elif sequences.lengths is not None:  # padding slots see items alone
            length = keys.shape[2]
            before = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
            mask = before & sequences.items(length)[:, None, None]
        mixed = F.scaled_dot_product_attention(
            self.dense_queries(q, sequences, rows),
            keys,
            values,
            attn_mask=mask,
            dropout_p=self.attention_dropout if self.training else 0.0,
            # What fills the dense form up is behind all of a sequence's rows.
            is_causal=mask is None,
        )
        return self.close(self.rows_of(mixed, sequences, rows), x, rows)


class LinRecAttention(PostNormAttention):
    """o = q (k^T v) / sqrt(d) with q and k through ELU and to unit length, over the whole sequence.

    Linear in its length. Source: LinRec (arXiv 2411.01537).
    """

    def forward(self, x: Tensor, sequences: Sequences, rows: Tensor | None = None) -> Tensor:
        """x: [T, D] -> [T, D]; or with `rows` [B], one of each sequence, -> [B, D]."""
        q, k, v = self.project(x, rows)
        q, k = self.feature(q), self.feature(k)
        keys, values = (heads_of(sequences.to_dense(t), self.num_heads) for t in (k, v))
        sums = keys.transpose(2, 3) @ values / math.sqrt(keys.shape[3])
        mixed = self.dense_queries(q, sequences, rows) @ sums
        return self.close(self.rows_of(mixed, sequences, rows), x, rows)

    def feature(self, x: Tensor) -> Tensor:
        """ELU, and each head's part of each row to length 1. [T, D] -> [T, D]."""
        return F.normalize(F.elu(x).unflatten(1, (self.num_heads, -1)), dim=2).flatten(1)
