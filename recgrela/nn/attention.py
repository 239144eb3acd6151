"""Post-norm attention on the dense form: causal softmax attention and LinRec's linear attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrela.nn.basic import AddNorm, Linear
from recgrela.nn.sequences import Sequences
from recgrela.ops import linear


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, L, D] -> [B, H, L, D / H], a view."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


class PostNormAttention(nn.Module):
    """LN(Dropout(out_proj(mix(q, k, v))) + x), as in RecBole's encoders. A subclass implements `mix`.

    Args:
        hidden_size: D.
        num_heads: the number of heads; divides D.
        dropout: the rate after the output projection.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = Linear(hidden_size, 3 * hidden_size)
        self.out_proj = Linear(hidden_size, hidden_size)
        self.norm = AddNorm(hidden_size, post_norm=True, dropout=dropout)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x: [T, D] -> [T, D], or the wanted rows [B, D]."""
        q, k, v, x = self.project(x, sequences)
        return self.finish(self.mix(q, k, v, sequences), x, sequences)

    def project(self, x: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [T, D] -> q of the wanted rows, [T, D] or [B, D]; k, v [T, D]; x for the residual."""
        if sequences.wanted is None:
            qkv, x = self.qkv_proj.with_input(x)
            q, k, v = qkv.chunk(3, dim=1)
            return q, k, v, x
        sizes = [x.shape[1], 2 * x.shape[1]]
        # Slices would each get a gradient of the whole size.
        q_weight, kv_weight = self.qkv_proj.weight.split(sizes)
        q_bias, kv_bias = self.qkv_proj.bias.split(sizes)
        kv, x = linear(x, kv_weight, kv_bias, return_x=True)
        k, v = kv.chunk(2, dim=1)
        return linear(sequences.select(x), q_weight, q_bias), k, v, x

    def mix(self, q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
        """The outputs of all heads for the rows of q, in the shape of q."""
        raise NotImplementedError

    def finish(self, mixed: Tensor, x: Tensor, sequences: Sequences) -> Tensor:
        """Projects the mixed rows, adds the residual and normalizes, [T, D] or [B, D]."""
        return self.norm(sequences.select(x), self.out_proj(mixed), sequences)[0]

    def dense_queries(self, q: Tensor, sequences: Sequences) -> Tensor:
        """q [T, D] -> [B, H, L, d]; the wanted rows [B, D] -> [B, H, 1, d]."""
        return split_heads(sequences.to_dense(q) if sequences.wanted is None else q[:, None], self.num_heads)

    def dense_keys(self, x: Tensor, sequences: Sequences) -> Tensor:
        """Keys or values [T, D] -> [B, H, L, d]."""
        return split_heads(sequences.to_dense(x), self.num_heads)

    @staticmethod
    def to_rows(outputs: Tensor, sequences: Sequences) -> Tensor:
        """[B, H, L, d] -> [T, D]; of the wanted rows, [B, H, 1, d] -> [B, D]."""
        dense = outputs.transpose(1, 2).flatten(2)
        return sequences.to_packed(dense) if sequences.wanted is None else dense[:, 0]


class CausalAttention(PostNormAttention):
    """Softmax attention of each row to the items before it and itself. Wanted rows must be last items.

    Args:
        hidden_size, num_heads, dropout: see `PostNormAttention`.
        attention_dropout: the rate on the attention weights.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__(hidden_size, num_heads, dropout)
        self.attention_dropout = attention_dropout

    def mix(self, q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
        keys, values = self.dense_keys(k, sequences), self.dense_keys(v, sequences)
        length, mask = keys.shape[2], None
        if sequences.wanted is not None:
            mask = sequences.item_mask(length)[:, None, None]
        elif sequences.lengths is not None:  # padding slots attend to items only
            causal = torch.ones(length, length, dtype=torch.bool, device=k.device).tril()
            keys_mask = sequences.item_mask(length).clone()  # other layers share the mask
            keys_mask[:, 0] = True  # in a sequence without items too: a softmax over nothing is NaN
            mask = causal & keys_mask[:, None, None]
        outputs = F.scaled_dot_product_attention(
            self.dense_queries(q, sequences),
            keys,
            values,
            attn_mask=mask,
            dropout_p=self.attention_dropout if self.training else 0.0,
            # The zeros of the dense form follow the rows of their sequence, so causality hides them too.
            is_causal=mask is None,
        )
        return self.to_rows(outputs, sequences)


class LinRecAttention(PostNormAttention):
    """o = q (k^T v) / sqrt(d) over the whole sequence; q and k pass through ELU and are normalized per head.

    The cost is linear in the length. Source: LinRec (arXiv 2411.01537).
    """

    def mix(self, q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
        q, k = self.feature(q), self.feature(k)
        keys, values = self.dense_keys(k, sequences), self.dense_keys(v, sequences)
        kv = keys.transpose(2, 3) @ values / math.sqrt(keys.shape[3])
        return self.to_rows(self.dense_queries(q, sequences) @ kv, sequences)

    def feature(self, x: Tensor) -> Tensor:
        """Applies ELU and scales each head of each row to length 1, [T, D] -> [T, D]."""
        return F.normalize(F.elu(x).unflatten(1, (self.num_heads, -1)), dim=2).flatten(1)
