"""Layers as plain functions of a dictionary of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def part(w: Weights, name: str) -> dict[str, Tensor]:
    """The weights of a submodule, under its own names."""
    return {key[len(name) + 1 :]: x for key, x in w.items() if key.startswith(f"{name}.")}


def parts(w: Weights, name: str) -> Iterator[dict[str, Tensor]]:
    """The weights of each module of a list."""
    index = 0
    while one := part(w, f"{name}.{index}"):
        yield one
        index += 1


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def layer_norm(w: Weights, name: str, x: Tensor, eps: float = 1e-12) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def softplus(x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(x))


def feed_forward(w: Weights, x: Tensor, activation: Callable[[Tensor], Tensor], eps: float = 1e-12) -> Tensor:
    inner = activation(linear(w, "mlp.fc1", x))
    return layer_norm(w, "norm", linear(w, "mlp.fc2", inner) + x, eps)


def look_up(w: Weights, items: Tensor) -> Tensor:
    """[B, L] -> [B, L, D]. The padding row is not zero and gets no gradient from look-ups."""
    table = w["item_embedding.weight"]
    return torch.cat([table[:1].detach(), table[1:]])[items]


def causal_conv(w: Weights, x: Tensor) -> Tensor:
    """Depthwise convolution over a slot and the slots before it, with zeros before the first one."""
    kernel = w["conv.weight"].squeeze(1)  # [C, K], its last column is for the slot itself
    out = []
    for t in range(x.shape[1]):
        y = w["conv.bias"].expand_as(x[:, t])
        for back in range(min(t + 1, kernel.shape[1])):
            y = y + kernel[:, -1 - back] * x[:, t - back]
        out.append(y)
    return torch.stack(out, 1)
