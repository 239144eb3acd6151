"""Writes recgrela_tiny.npz: scores, loss and gradients of a tiny RecGRELA, from the paper's formulas alone.

Independent of the package on purpose: explicit loops in NumPy float64, gradients by central differences.
Run it (about two minutes) only when a case is added:  python python_tests/golden/make_recgrela.py
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

D, H, L, K, N_ITEMS, EPS = 8, 2, 6, 4, 9, 1e-6
CASES = {  # blocks, mode, padding
    "attend": (2, "bidirectional", "attend"),
    "one_block": (1, "bidirectional", "attend"),
    "mask": (2, "bidirectional", "mask"),
    "causal": (2, "causal", "mask"),
}
ITEM_SEQ = np.array([[3, 1, 4, 1, 5, 2], [6, 5, 3, 0, 0, 0], [8, 0, 0, 0, 0, 0]])
LENGTHS = np.array([6, 3, 1])
TARGET = np.array([7, 1, 2])
TARGET_ALL = np.array([[1, 4, 1, 5, 2, 7], [5, 3, 1, 0, 0, 0], [2, 0, 0, 0, 0, 0]])


def linear(x, p, name):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def layer_norm(x, p, name):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * p[f"{name}.weight"] + p[f"{name}.bias"]


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def phi(x):
    return np.where(x > 0, x + 1, np.exp(x))


def rotate(x, i):
    out = np.empty_like(x)
    for t in range(D // 2):
        angle = i * 10000 ** (-2 * t / D)
        c, s = math.cos(angle), math.sin(angle)
        out[2 * t] = x[2 * t] * c - x[2 * t + 1] * s
        out[2 * t + 1] = x[2 * t] * s + x[2 * t + 1] * c
    return out


def mix(q, k, v, g, p, name, causal):
    n, d = len(q), D // H
    y = np.empty_like(v)
    fq, fk = phi(q), phi(k)
    for i in range(n):
        seen = range(i + 1) if causal else range(n)
        for h in range(H):
            c = slice(h * d, (h + 1) * d)
            S = sum(np.outer(rotate(fk[j], j)[c], v[j, c]) for j in seen) / len(seen)
            z = sum(fk[j, c] for j in seen) / len(seen)
            y[i, c] = rotate(fq[i], i)[c] @ S / (fq[i, c] @ z + EPS)
        conv = p[f"{name}.conv1d.bias"].copy()
        for w in range(K):
            if i - K + 1 + w >= 0:
                conv += p[f"{name}.conv1d.weight"][:, 0, w] * v[i - K + 1 + w]
        y[i] += silu(conv)
    return y * silu(g)


def hidden_states(items, p, blocks, causal):
    x = layer_norm(p["item_embedding.weight"][items], p, "LayerNorm")
    for b in range(blocks):
        name = f"GRELA_block.{b}"
        u = layer_norm(x, p, f"{name}.LayerNorm1")
        v = linear(u, p, f"{name}.in_proj")
        q, k = np.split(linear(v, p, f"{name}.attn.qk"), 2, axis=-1)
        y = mix(q, k, v, linear(u, p, f"{name}.act_proj"), p, f"{name}.attn", causal)
        y = linear(y, p, f"{name}.out_proj")
        x = y if blocks == 1 else x + y
        m = linear(
            gelu(linear(layer_norm(x, p, f"{name}.LayerNorm2"), p, f"{name}.mlp.fc1")), p, f"{name}.mlp.fc2"
        )
        x = m if blocks == 1 else x + m
    return x


def scores_and_losses(p, case):
    blocks, mode, padding = CASES[case]
    scores, last, everywhere = [], [], []
    for seq, n, target, target_all in zip(ITEM_SEQ, LENGTHS, TARGET, TARGET_ALL, strict=True):
        states = hidden_states(seq if padding == "attend" else seq[:n], p, blocks, mode == "causal")[:n]
        logits = states @ p["item_embedding.weight"].T
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        scores.append(logits[-1])
        last.append(-log_p[-1, target])
        everywhere += [-log_p[i, target_all[i]] for i in range(n)]
    return np.stack(scores), np.mean(last), np.mean(everywhere)


def parameters(rng):
    shapes = {"item_embedding.weight": (N_ITEMS, D), "LayerNorm.weight": (D,), "LayerNorm.bias": (D,)}
    for b in range(2):
        n = f"GRELA_block.{b}"
        linears = {"attn.qk": (2 * D, D), "in_proj": (D, D), "out_proj": (D, D), "act_proj": (D, D)}
        linears |= {"mlp.fc1": (4 * D, D), "mlp.fc2": (D, 4 * D)}
        for name, shape in linears.items():
            shapes |= {f"{n}.{name}.weight": shape, f"{n}.{name}.bias": shape[:1]}
        shapes |= {f"{n}.attn.conv1d.weight": (D, 1, K), f"{n}.attn.conv1d.bias": (D,)}
        for norm in ("LayerNorm1", "LayerNorm2"):
            shapes |= {f"{n}.{norm}.weight": (D,), f"{n}.{norm}.bias": (D,)}
    return {name: rng.normal(size=shape) * 0.5 for name, shape in shapes.items()}


def gradients(p, loss):
    """Central differences, but that a look-up of the padding row gives that row no gradient."""
    step, grads = 1e-5, {}
    for name, value in p.items():
        grad = np.empty_like(value)
        for i in np.ndindex(value.shape):
            kept = value[i]
            value[i] = kept + step
            up = loss(p)
            value[i] = kept - step
            grad[i] = (up - loss(p)) / (2 * step)
            value[i] = kept
        grads[name] = grad
    return grads


def main():
    p = parameters(np.random.default_rng(0))
    arrays = {f"param.{name}": value for name, value in p.items()}
    arrays |= {"item_seq": ITEM_SEQ, "lengths": LENGTHS, "target": TARGET, "target_all": TARGET_ALL}
    for case, (blocks, mode, _) in CASES.items():
        own = {k: v for k, v in p.items() if not (blocks == 1 and "block.1" in k)}
        scores, last, everywhere = scores_and_losses(own, case)
        which = 2 if mode == "causal" else 1
        arrays |= {f"{case}.scores": scores, f"{case}.loss": [last, everywhere][which - 1]}
        grads = gradients(own, lambda q, case=case, which=which: scores_and_losses(q, case)[which])
        grads["item_embedding.weight"][0] = np.nan  # its look-up part is not separated here
        arrays |= {f"{case}.grad.{name}": g.astype(np.float32) for name, g in grads.items()}
    np.savez_compressed(Path(__file__).with_name("recgrela_tiny.npz"), **arrays)


if __name__ == "__main__":
    main()
