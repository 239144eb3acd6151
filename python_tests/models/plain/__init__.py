"""The models other than RecGRELA as plain functions, which the models made of kernels must equal.

Each function takes weights under our parameter names, a configuration and item ids [B, L], right-padded with
0, where L is the length that the authors pad to (`max_len`). It returns the state of every slot, [B, L, D],
in eval mode and as published: padding affects the result wherever it does in the authors' code. Everything is
dense; recurrences are loops over time; softmax and Fourier transform are written out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from python_tests.models.plain.layers import Weights
from python_tests.models.plain.recurrences import lrurec, recblr
from python_tests.models.plain.state_spaces import echomamba4rec, mamba4rec, sigma
from python_tests.models.plain.transformers import eulerformer, linrec, sasrec

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
    """The state after every slot, [B, L, D], and a term to add to the loss."""
    out = PLAIN[config.name](w, config, items, **how)
    return out if isinstance(out, tuple) else (out, 0.0)


def scores(w: Weights, hidden: Tensor) -> Tensor:
    """[N, D] -> [N, n_items]."""
    products = hidden @ w["item_embedding.weight"].T
    return products + w["item_bias"] if "item_bias" in w else products
