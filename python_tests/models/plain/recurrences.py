"""LRURec and RecBLR."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from python_tests.models.plain.layers import (
    Weights,
    causal_conv,
    feed_forward,
    gelu,
    layer_norm,
    linear,
    look_up,
    part,
    parts,
    silu,
    softplus,
)


def power_of_two(length: int) -> int:
    return 2 ** math.ceil(math.log2(length))


def lrurec(w: Weights, config: Any, items: Tensor) -> Tensor:
    """Items move to the right end of a power of two of slots; padding slots pass no state on."""
    length, eps = power_of_two(items.shape[1]), 1e-5
    counts = (items != 0).sum(1).tolist()
    moved = items.new_zeros(len(items), length)
    for row, own, n in zip(moved, items, counts, strict=True):
        row[length - n :] = own[:n]
    x = layer_norm(w, "norm", look_up(w, moved), eps)
    for block in parts(w, "blocks"):
        a = part(block, "lru")
        nu, theta, gamma = torch.exp(a["params_log"])
        decay = torch.exp(torch.complex(-nu, theta))
        inputs = linear(a, "in_proj", x)  # alternating real and imaginary parts
        inputs = torch.complex(inputs[:, :, 0::2], inputs[:, :, 1::2]) * gamma
        h = [inputs[:, 0]]
        for t in range(1, length):
            carry = (moved[:, t - 1] != 0).to(x.dtype)[:, None]
            h.append(decay * h[-1] * carry + inputs[:, t])
        weight = a["out_proj.weight"]  # real(C h); imaginary parts have the opposite sign
        c = torch.complex(weight[:, 0::2], -weight[:, 1::2])
        y = (torch.stack(h, 1) @ c.T).real + a["out_proj.bias"]
        x = layer_norm(a, "norm", y + x, eps)
        x = feed_forward(part(block, "ffn"), x, gelu, eps)
    back = torch.zeros(*items.shape, x.shape[2], dtype=x.dtype)
    back[items != 0] = x[moved != 0]
    return back


def recblr(w: Weights, config: Any, items: Tensor) -> Tensor:
    """Zeros pad to a power of two before the convolution, whose bias gives them a state."""
    x = layer_norm(w, "norm", look_up(w, items))
    before = power_of_two(items.shape[1]) - items.shape[1]
    for layer in parts(w, "layers"):
        a = part(layer, "recurrence")
        u, z = linear(a, "in_proj", x).chunk(2, -1)
        zeros = u.new_zeros(len(u), before, u.shape[2])
        u = silu(causal_conv(a, torch.cat([zeros, u], 1)))
        r, i = linear(a, "gates", u).chunk(2, -1)
        alpha = torch.exp(-softplus(a["Lambda"]) * torch.sigmoid(r))
        beta = torch.sqrt(1 - alpha * alpha + 1e-8) * torch.sigmoid(i)
        h, out = torch.zeros_like(u[:, 0]), []
        for t in range(u.shape[1]):
            h = alpha[:, t] * h + beta[:, t] * u[:, t]
            out.append(h)
        y = linear(a, "out_proj", torch.stack(out[before:], 1) * silu(z))
        x = feed_forward(part(layer, "ffn"), layer_norm(layer, "norm", y + x), silu)
    return x
