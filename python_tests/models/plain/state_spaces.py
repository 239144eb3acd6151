"""Mamba4Rec, EchoMamba4Rec and SIGMA."""

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


def mamba(w: Weights, x: Tensor) -> Tensor:
    """The selective state space block (arXiv 2312.00752), [B, L, D] -> [B, L, D]."""
    u, z = linear(w, "in_proj", x).chunk(2, -1)
    u = silu(causal_conv(w, u))
    rank, states = w["dt_proj.weight"].shape[1], w["A_log"].shape[1]
    low, b, c = linear(w, "x_proj", u).split([rank, states, states], -1)
    step, a = softplus(linear(w, "dt_proj", low)), -torch.exp(w["A_log"])
    h, out = x.new_zeros(x.shape[0], *a.shape), []
    for t in range(x.shape[1]):
        h = torch.exp(step[:, t, :, None] * a) * h + (step[:, t] * u[:, t])[:, :, None] * b[:, t, None, :]
        out.append((h * c[:, t, None, :]).sum(-1) + w["D"] * u[:, t])
    return linear(w, "out_proj", torch.stack(out, 1) * silu(z))


def mamba4rec(w: Weights, config: Any, items: Tensor) -> Tensor:
    x = layer_norm(w, "norm", look_up(w, items))
    for layer in parts(w, "layers"):
        y = mamba(part(layer, "mamba"), x)
        y = y + x if config.num_layers > 1 or config.single_layer_residual else y
        x = feed_forward(part(layer, "ffn"), layer_norm(layer, "norm", y), gelu)
    return x


def frequency_filter(weight: Tensor, x: Tensor, length: int) -> Tensor:
    """irfft(rfft(x) * weight) over time, for x [B, L, D] padded with zeros to `length` slots."""
    factor, slots = torch.complex(weight[:, :, 0], weight[:, :, 1]), torch.arange(x.shape[1])
    y = torch.zeros_like(x)
    for frequency in range(length // 2 + 1):
        angle = slots.to(x.dtype) * (2 * math.pi * frequency / length)
        wave = torch.polar(torch.ones_like(angle), angle)[:, None]  # [L, 1]
        amplitude = (x * wave.conj()).sum(1, keepdim=True) * factor[frequency]
        twice = 1 if frequency == 0 or 2 * frequency == length else 2  # with its conjugate above length / 2
        y = y + twice * (amplitude * wave).real / length
    return y


def echomamba4rec(w: Weights, config: Any, items: Tensor, filter_len: int | None = None) -> Tensor:
    """All slots are filtered and reversed; the filter pads them with zeros to `filter_len`, if given."""
    x = layer_norm(w, "norm", look_up(w, items))
    for layer in parts(w, "layers"):
        filtered = frequency_filter(layer["filter.weight"], x, filter_len or items.shape[1])
        x = layer_norm(layer, "filter.norm", filtered + x)
        for pair in parts(layer, "pairs"):
            ahead = mamba(part(pair, "forward_mamba"), x)
            back = mamba(part(pair, "backward_mamba"), x.flip(1)).flip(1)
            ahead = layer_norm(pair, "forward_norm", ahead + x, 1e-5)
            x = ahead + layer_norm(pair, "backward_norm", back + x, 1e-5)
        value, gate = linear(layer, "glu.fc1", x).chunk(2, -1)
        x = layer_norm(layer, "glu.norm", linear(layer, "glu.fc2", value * torch.sigmoid(gate)) + x)
    return x


def gru(w: Weights, x: Tensor) -> Tensor:
    """A GRU without biases; the weights of its three gates are in PyTorch's order."""
    enter, state = w["gru.weight_ih_l0"].chunk(3), w["gru.weight_hh_l0"].chunk(3)
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        reset, keep = (torch.sigmoid(x[:, t] @ enter[g].T + h @ state[g].T) for g in (0, 1))
        new = torch.tanh(x[:, t] @ enter[2].T + reset * (h @ state[2].T))
        h = (1 - keep) * new + keep * h
        out.append(h)
    return torch.stack(out, 1)


def sigma(w: Weights, config: Any, items: Tensor) -> Tensor:
    """One branch takes the first `flip` slots in reverse order, padding slots among them."""
    x = layer_norm(w, "norm", look_up(w, items))
    for layer in parts(w, "layers"):
        m = part(layer, "mixer")
        flipped = torch.cat([x[:, : config.flip].flip(1), x[:, config.flip :]], 1)
        first, second = x + linear(m, "dense1", x), flipped + linear(m, "dense2", flipped)
        first = linear(m, "silu_gate", silu(first)) + linear(m, "sigmoid_gate", torch.sigmoid(first))
        # The sigmoid of the second branch takes the gate of the first.
        second = linear(m, "silu_gate", silu(second)) + linear(m, "sigmoid_gate", torch.sigmoid(first))
        y = mamba(part(m, "mamba"), x) * (1 + first)
        y_flipped = mamba(part(m, "mamba"), flipped) * (1 + second)
        around = torch.cat([torch.zeros_like(x[:, :1]), x, torch.zeros_like(x[:, :1])], 1)
        slots, kernel = range(items.shape[1]), m["conv.weight"]
        local = [sum(around[:, t + k] @ kernel[:, :, k].T for k in range(3)) for t in slots]
        recurrent = gru(m, torch.stack(local, 1) + m["conv.bias"])
        y = m["mix"][0] * recurrent + m["mix"][1] * y_flipped + m["mix"][2] * y
        y = linear(m, "out_proj", y)
        y = y + x if config.num_layers > 1 or config.single_layer_residual else y
        x = feed_forward(part(layer, "ffn"), layer_norm(layer, "norm", y), gelu)
    return x
