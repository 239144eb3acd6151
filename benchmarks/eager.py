"""The op in plain PyTorch as a good user would write it: dense batches of equal lengths, batched products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops import rotate


def _features(q: Tensor, k: Tensor, v: Tensor, rotary: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """phi and R phi of q and k, and v, split into heads: [B, H, L, d]."""
    fq, fk = F.elu(q) + 1, F.elu(k) + 1
    parts = (fq, fk, rotate(fq, rotary), rotate(fk, rotary), v)
    return tuple(x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in parts)


def bidirectional(q: Tensor, k: Tensor, v: Tensor, rotary: Tensor, num_heads: int, eps: float) -> Tensor:
    """o: [B, L, D]."""
    fq, fk, rq, rk, v = _features(q, k, v, rotary, num_heads)
    n = q.shape[1]
    state = rk.mT @ v / n
    den = fq @ fk.mean(-2, keepdim=True).mT + eps
    return (rq @ state / den).transpose(1, 2).flatten(2)


def causal_masked(q: Tensor, k: Tensor, v: Tensor, rotary: Tensor, num_heads: int, eps: float) -> Tensor:
    """o: [B, L, D], by masked L x L products."""
    fq, fk, rq, rk, v = _features(q, k, v, rotary, num_heads)
    count = torch.arange(1, q.shape[1] + 1, dtype=q.dtype, device=q.device)[:, None]
    den = (fq * fk.cumsum(-2)).sum(-1, keepdim=True) / count + eps
    return ((rq @ rk.mT).tril() @ v / count / den).transpose(1, 2).flatten(2)


def causal_chunked(
    q: Tensor, k: Tensor, v: Tensor, rotary: Tensor, num_heads: int, eps: float, chunk: int = 40
) -> Tensor:
    """o: [B, L, D], by cumulative sums of chunks' states and masked products inside the chunks."""
    fq, fk, rq, rk, v = _features(q, k, v, rotary, num_heads)
    n = q.shape[1]
    count = torch.arange(1, n + 1, dtype=q.dtype, device=q.device)[:, None]
    den = (fq * fk.cumsum(-2)).sum(-1, keepdim=True) / count + eps
    pad = -n % chunk
    rq, rk, v = (F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, chunk)) for x in (rq, rk, v))
    state = rk.mT @ v
    before = state.cumsum(2) - state
    num = rq @ before + (rq @ rk.mT).tril() @ v
    return (num.flatten(2, 3)[:, :, :n] / count / den).transpose(1, 2).flatten(2)


FORMS = {"bidirectional": [bidirectional], "causal": [causal_masked, causal_chunked]}


def gated_rela(
    form,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    rotary: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_heads: int,
) -> Tensor:
    """y: [B, L, D]; `form` is one of FORMS."""
    o = form(q, k, v, rotary, num_heads, 1e-6)
    width = weight.shape[1]
    conv = F.conv1d(v.mT, weight[:, None], bias, padding=width - 1, groups=v.shape[-1])[..., : v.shape[1]]
    return (o + F.silu(conv).mT) * F.silu(g)
