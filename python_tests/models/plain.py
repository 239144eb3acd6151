"""The models other than RecGRELA as plain functions: what the models that are made of kernels must equal.

Each takes weights under our parameter names, a configuration and item ids [B, L], right-padded with 0, where
L is what the authors pad to (`max_len`), and gives the state behind every slot, [B, L, D], in eval mode and
as published: padding slots take part wherever they do in the authors' code. Everything is dense, recurrences
are loops over time, softmax and Fourier transform are written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

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
    """[B, L] -> [B, L, D]. The padding row is not zero, but is not trained through look-ups."""
    table = w["item_embedding.weight"]
    return torch.cat([table[:1].detach(), table[1:]])[items]


def causal_conv(w: Weights, x: Tensor) -> Tensor:
    """Depthwise, over this slot and those before it, zeros before the first one."""
    taps = w["conv.weight"].squeeze(1)  # [C, W], the last one for this slot
    out = []
    for t in range(x.shape[1]):
        y = w["conv.bias"].expand_as(x[:, t])
        for back in range(min(t + 1, taps.shape[1])):
            y = y + taps[:, -1 - back] * x[:, t - back]
        out.append(y)
    return torch.stack(out, 1)


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


# ---- Transformers


def transformer(w: Weights, x: Tensor, attention: Callable[..., Tensor]) -> Tensor:
    """Post-norm blocks; `attention` is of a block's weights, queries, keys and values."""
    for block in parts(w, "blocks"):
        a = part(block, "attention")
        mixed = attention(a, *linear(a, "qkv_proj", x).chunk(3, -1))
        x = layer_norm(a, "norm", linear(a, "out_proj", mixed) + x)
        x = feed_forward(part(block, "ffn"), x, gelu)
    return x


def with_positions(w: Weights, items: Tensor) -> Tensor:
    return look_up(w, items) + w["position_embedding.weight"][: items.shape[1]]


def by_head(attend: Callable[..., Tensor], num_heads: int, *whole: Tensor) -> Tensor:
    """`attend` on each head's share of the channels."""
    return torch.cat([attend(*own) for own in zip(*(x.chunk(num_heads, 2) for x in whole), strict=True)], 2)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, items: Tensor, num_heads: int) -> Tensor:
    """Each slot looks at those up to itself that hold an item."""
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
    """Every slot looks at all of them, padding slots too."""

    def feature(x: Tensor) -> Tensor:
        x = torch.where(x > 0, x, torch.exp(x.clamp(max=0)) - 1)
        return x / x.square().sum(-1, keepdim=True).sqrt()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        likeness = feature(q) @ feature(k).transpose(1, 2)  # [B, L, L]
        return likeness @ v / math.sqrt(q.shape[2])

    def attention(_: Weights, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return by_head(attend, config.num_heads, q, k, v)

    return transformer(w, layer_norm(w, "norm", with_positions(w, items)), attention)


def eulerformer(w: Weights, config: Any, items: Tensor) -> tuple[Tensor, Tensor]:
    """The states, and the contrastive loss, which is over all slots, with its weight."""
    contrastive = []

    def polar(x: Tensor) -> tuple[Tensor, Tensor]:
        real, imaginary = x[:, :, 0::2], x[:, :, 1::2]
        return (real.square() + imaginary.square()).sqrt(), torch.atan2(imaginary, real)

    def cartesian(modulus: Tensor, angle: Tensor) -> Tensor:
        return torch.stack([modulus * torch.cos(angle), modulus * torch.sin(angle)], 3).flatten(2)

    def turned(a: Weights, x: Tensor, bias: Tensor | float) -> Tensor:
        modulus, angle = polar(x)
        return cartesian(modulus, angle * a["delta"] + a["angles"][: items.shape[1]] + bias)

    def contrast(a: Weights, x: Tensor) -> Tensor:
        _, angle = polar(x)
        apart = angle[:, :, None] - angle[:, None]  # [B, L, L, D / 2]
        likeness = torch.exp((torch.cos(apart) * a["contrastive_scale"]).sum(3) / config.temperature)
        own = likeness.diagonal(dim1=1, dim2=2)
        return -torch.log(own / (likeness.sum(2) + 1e-5)).mean()

    def attention(a: Weights, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = turned(a, q, a.get("query_bias", 0.0)), turned(a, k, 0.0)
        contrastive.append(contrast(a, q) + contrast(a, k))
        return softmax_attention(q, k, v, items, config.num_heads)

    modulus, angle = polar(with_positions(w, items))
    x = cartesian(modulus, angle + w["rotary_embedding.weight"][: items.shape[1]])
    states = transformer(w, layer_norm(w, "norm", x), attention)
    return states, config.contrastive_weight * torch.stack(contrastive).sum()


# ---- linear recurrences


def power_of_two(length: int) -> int:
    return 2 ** math.ceil(math.log2(length))


def lrurec(w: Weights, config: Any, items: Tensor) -> Tensor:
    """Moved to the right end of a power of two of slots; nothing is carried out of a padding slot."""
    length, eps = power_of_two(items.shape[1]), 1e-5
    counts = (items != 0).sum(1).tolist()
    moved = items.new_zeros(len(items), length)
    for row, of, n in zip(moved, items, counts, strict=True):
        row[length - n :] = of[:n]
    x = layer_norm(w, "norm", look_up(w, moved), eps)
    for block in parts(w, "blocks"):
        a = part(block, "lru")
        nu, theta, gamma = torch.exp(a["params_log"])
        decay = torch.exp(torch.complex(-nu, theta))
        driven = linear(a, "in_proj", x)  # real and imaginary parts in turn
        driven = torch.complex(driven[:, :, 0::2], driven[:, :, 1::2]) * gamma
        h = [driven[:, 0]]
        for t in range(1, length):
            carry = (moved[:, t - 1] != 0).to(x.dtype)[:, None]
            h.append(decay * h[-1] * carry + driven[:, t])
        weight = a["out_proj.weight"]  # real(C h), imaginary parts with their sign turned
        c = torch.complex(weight[:, 0::2], -weight[:, 1::2])
        y = (torch.stack(h, 1) @ c.T).real + a["out_proj.bias"]
        x = layer_norm(a, "norm", y + x, eps)
        x = feed_forward(part(block, "ffn"), x, gelu, eps)
    back = torch.zeros(*items.shape, x.shape[2], dtype=x.dtype)
    back[items != 0] = x[moved != 0]
    return back


def recblr(w: Weights, config: Any, items: Tensor) -> Tensor:
    """Zeros up to a power of two in front of the convolution, whose bias makes a state of them."""
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


# ---- selective state spaces


def mamba4rec(w: Weights, config: Any, items: Tensor) -> Tensor:
    x = layer_norm(w, "norm", look_up(w, items))
    for layer in parts(w, "layers"):
        y = mamba(part(layer, "mamba"), x)
        y = y + x if config.num_layers > 1 or config.single_layer_residual else y
        x = feed_forward(part(layer, "ffn"), layer_norm(layer, "norm", y), gelu)
    return x


def frequency_filter(weight: Tensor, x: Tensor, length: int) -> Tensor:
    """irfft(rfft(x) * weight) over time, x [B, L, D] with zeros behind it up to `length` slots."""
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
    """All slots are filtered and turned round; with `filter_len` the filter sees zeros behind them."""
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
    """Without biases; the three gates' weights are in PyTorch's order."""
    enter, state = w["gru.weight_ih_l0"].chunk(3), w["gru.weight_hh_l0"].chunk(3)
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        reset, keep = (torch.sigmoid(x[:, t] @ enter[g].T + h @ state[g].T) for g in (0, 1))
        new = torch.tanh(x[:, t] @ enter[2].T + reset * (h @ state[2].T))
        h = (1 - keep) * new + keep * h
        out.append(h)
    return torch.stack(out, 1)


def sigma(w: Weights, config: Any, items: Tensor) -> Tensor:
    """The first `flip` slots are turned round for one branch, with those of the padding among them."""

    x = layer_norm(w, "norm", look_up(w, items))
    for layer in parts(w, "layers"):
        m = part(layer, "mixer")
        flipped = torch.cat([x[:, : config.flip].flip(1), x[:, config.flip :]], 1)
        first, second = x + linear(m, "dense1", x), flipped + linear(m, "dense2", flipped)
        first = linear(m, "silu_gate", silu(first)) + linear(m, "sigmoid_gate", torch.sigmoid(first))
        # The first branch's gate, not the second branch, goes into the second one's sigmoid.
        second = linear(m, "silu_gate", silu(second)) + linear(m, "sigmoid_gate", torch.sigmoid(first))
        straight = mamba(part(m, "mamba"), x) * (1 + first)
        turned = mamba(part(m, "mamba"), flipped) * (1 + second)
        around = torch.cat([torch.zeros_like(x[:, :1]), x, torch.zeros_like(x[:, :1])], 1)
        slots, taps = range(items.shape[1]), m["conv.weight"]
        local = [sum(around[:, t + tap] @ taps[:, :, tap].T for tap in range(3)) for t in slots]
        recurrent = gru(m, torch.stack(local, 1) + m["conv.bias"])
        y = m["mix"][0] * recurrent + m["mix"][1] * turned + m["mix"][2] * straight
        y = linear(m, "out_proj", y)
        y = y + x if config.num_layers > 1 or config.single_layer_residual else y
        x = feed_forward(part(layer, "ffn"), layer_norm(layer, "norm", y), gelu)
    return x


# ---- what all of them share

PLAIN: dict[str, Callable[..., Any]] = {
    "SASRec": sasrec,
    "LinRec": linrec,
    "LRURec": lrurec,
    "Mamba4Rec": mamba4rec,
    "EchoMamba4Rec": echomamba4rec,
    "EulerFormer": eulerformer,
    "RecBLR": recblr,
    "SIGMA": sigma,
}


def states(w: Weights, config: Any, items: Tensor, **how: Any) -> tuple[Tensor, Tensor | float]:
    """The state behind every slot, [B, L, D], and what is added to the loss."""
    out = PLAIN[config.name](w, config, items, **how)
    return out if isinstance(out, tuple) else (out, 0.0)


def scores(w: Weights, hidden: Tensor) -> Tensor:
    """[N, D] -> [N, n_items]."""
    products = hidden @ w["item_embedding.weight"].T
    return products + w["item_bias"] if "item_bias" in w else products
