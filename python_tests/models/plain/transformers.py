"""SASRec, LinRec and EulerFormer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from python_tests.models.plain.layers import (
    Weights,
    feed_forward,
    gelu,
    layer_norm,
    linear,
    look_up,
    part,
    parts,
)


def transformer(w: Weights, x: Tensor, attention: Callable[..., Tensor]) -> Tensor:
    """Post-norm blocks; `attention` takes a block's weights, queries, keys and values."""
    for block in parts(w, "blocks"):
        a = part(block, "attention")
        mixed = attention(a, *linear(a, "qkv_proj", x).chunk(3, -1))
        x = layer_norm(a, "norm", linear(a, "out_proj", mixed) + x)
        x = feed_forward(part(block, "ffn"), x, gelu)
    return x


def with_positions(w: Weights, items: Tensor) -> Tensor:
    return look_up(w, items) + w["position_embedding.weight"][: items.shape[1]]


def by_head(attend: Callable[..., Tensor], num_heads: int, *whole: Tensor) -> Tensor:
    """`attend` on the channels of each head."""
    return torch.cat([attend(*own) for own in zip(*(x.chunk(num_heads, 2) for x in whole), strict=True)], 2)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, items: Tensor, num_heads: int) -> Tensor:
    """Each slot attends to the items up to its own slot."""
    slots = torch.arange(items.shape[1])
    seen = (slots[:, None] >= slots) & (items != 0)[:, None, :]  # [B, L, L]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.exp(q @ k.transpose(1, 2) / math.sqrt(q.shape[2])) * seen
        return weights / weights.sum(2, keepdim=True) @ v

    return by_head(attend, num_heads, q, k, v)


def sasrec(w: Weights, config: Any, items: Tensor) -> Tensor:
    def attention(_: Weights, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return softmax_attention(q, k, v, items, config.num_heads)

    return transformer(w, layer_norm(w, "norm", with_positions(w, items)), attention)


def linrec(w: Weights, config: Any, items: Tensor) -> Tensor:
    """Every slot attends to all slots, padding slots too."""

    def feature(x: Tensor) -> Tensor:
        x = torch.where(x > 0, x, torch.exp(x.clamp(max=0)) - 1)
        return x / x.square().sum(-1, keepdim=True).sqrt()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        similarity = feature(q) @ feature(k).transpose(1, 2)  # [B, L, L]
        return similarity @ v / math.sqrt(q.shape[2])

    def attention(_: Weights, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return by_head(attend, config.num_heads, q, k, v)

    return transformer(w, layer_norm(w, "norm", with_positions(w, items)), attention)


def eulerformer(w: Weights, config: Any, items: Tensor) -> tuple[Tensor, Tensor]:
    """The states, and the weighted contrastive loss over all slots."""
    contrastive = []

    def polar(x: Tensor) -> tuple[Tensor, Tensor]:
        real, imaginary = x[:, :, 0::2], x[:, :, 1::2]
        return (real.square() + imaginary.square()).sqrt(), torch.atan2(imaginary, real)

    def cartesian(modulus: Tensor, angle: Tensor) -> Tensor:
        return torch.stack([modulus * torch.cos(angle), modulus * torch.sin(angle)], 3).flatten(2)

    def rotated(a: Weights, x: Tensor, bias: Tensor | float) -> Tensor:
        modulus, angle = polar(x)
        return cartesian(modulus, angle * a["delta"] + a["angles"][: items.shape[1]] + bias)

    def contrast(a: Weights, x: Tensor) -> Tensor:
        _, angle = polar(x)
        difference = angle[:, :, None] - angle[:, None]  # [B, L, L, D / 2]
        similarity = torch.exp((torch.cos(difference) * a["contrastive_scale"]).sum(3) / config.temperature)
        own = similarity.diagonal(dim1=1, dim2=2)
        return -torch.log(own / (similarity.sum(2) + 1e-5)).mean()

    def attention(a: Weights, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = rotated(a, q, a.get("query_bias", 0.0)), rotated(a, k, 0.0)
        contrastive.append(contrast(a, q) + contrast(a, k))
        return softmax_attention(q, k, v, items, config.num_heads)

    modulus, angle = polar(with_positions(w, items))
    x = cartesian(modulus, angle + w["rotary_embedding.weight"][: items.shape[1]])
    states = transformer(w, layer_norm(w, "norm", x), attention)
    return states, config.contrastive_weight * torch.stack(contrastive).sum()
