"""Floating-point operations of scoring one history, counted op by op.

Importing this module registers formulas for recgrela's ops, for FFTs and for attention on the CPU with
`torch.utils.flop_counter`, which has the matrix products, the convolutions and attention on CUDA.

The convention, of the forward pass:

- a multiply-add is 2 (of complex numbers 8), in a matrix product, attention, a convolution or a scan;
- elementwise work (activations, norms, rotations, gates, biases, divisions) is not counted, inside a fused op
  no more than outside, so that fusing changes no count; nor are look-ups and sums over a row;
- attention is counted as PyTorch counts it: every query with every key, whatever the mask.

    op                    of T rows, D channels
    mlp                   4 T D F, F wide
    linear_cross_entropy  2 T D n_items, and the same for each gradient that it makes
    causal_conv1d         2 T D taps
    gated_rela            with heads W wide: 4 T D W, keys x values into the state and queries x state; 4 T D,
                          the sum of keys and queries x sum; 2 T D taps, its convolution
    key_sums              2 T D W and 2 T D, the keys' half of it
    linear_scan           2 T D, h = a h + x; 8 T D complex
    selective_scan        9 T D N of N states a channel, and T D each for the skip and the gate, as Mamba's
                          papers count it (that count has its discretisation, which is elementwise, in it)
    FFT of n points       5 n log2 n complex, half of that real, as FFTW's authors count it
    attention             4 T^2 D
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from recgrela.models import SequenceModel

Shape = Sequence[int]


@dataclass(frozen=True)
class Flops:
    """Of scoring one history: `encoder` up to the last position's state, `scores` of all items from it."""

    encoder: int
    scores: int

    @property
    def total(self) -> int:
        return self.encoder + self.scores


@torch.no_grad()
def count_flops(model: SequenceModel, length: int | None = None) -> Flops:
    """Count the operations of scoring every item after one history.

    Args:
        model: in any mode, on any device; a copy on the CPU is counted.
        length: items of the history; None: `model.max_len`.
    """
    model = copy.deepcopy(model).cpu().eval()  # a GPU's fused ops, such as cuDNN's GRU, have no formulas
    length = length or model.max_len
    items = torch.arange(length) % (model.n_items - 1) + 1
    cu_seqlens = torch.tensor([0, length])
    with FlopCounterMode(display=False) as whole:
        model.score_packed(items, cu_seqlens, length)
    with FlopCounterMode(display=False) as encoder:
        model.hidden_states(items, cu_seqlens, length, True)
    counted = encoder.get_total_flops()
    return Flops(counted, whole.get_total_flops() - counted)


def mlp(x: Shape, w1: Shape, b1: Shape, w2: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * _rows(x) * (math.prod(w1) + math.prod(w2))


def linear_cross_entropy(
    hidden: Shape,
    weight: Shape,
    target: Shape,
    max_logits: int,
    hidden_grad: bool,
    weight_grad: bool,
    **kwargs: Any,
) -> int:
    return 2 * _rows(hidden) * math.prod(weight) * (1 + hidden_grad + weight_grad)


def causal_conv1d(x: Shape, weight: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * _rows(x) * math.prod(weight)


def gated_rela(
    q: Shape,
    k: Shape | None,
    v: Shape,
    g: Shape | None,
    cu_seqlens: Shape,
    rotary: Shape | None,
    conv_weight: Shape | None,
    conv_bias: Shape | None,
    sums: Shape | None,
    values: Shape | None,
    position: Shape | None,
    num_heads: int,
    *args: Any,
    **kwargs: Any,
) -> int:
    taps = 0 if conv_weight is None else conv_weight[-1]
    return math.prod(v) * (4 * (v[-1] // num_heads) + 4 + 2 * taps)


def key_sums(
    k: Shape, v: Shape, cu_seqlens: Shape, rotary: Shape | None, num_heads: int, **kwargs: Any
) -> int:
    return math.prod(v) * (2 * (v[-1] // num_heads) + 2)


def linear_scan(x: Tensor, *args: Any, **kwargs: Any) -> int:
    return x.numel() * (8 if x.is_complex() else 2)


def selective_scan(
    u: Shape,
    delta: Shape,
    a: Shape,
    b: Shape,
    c: Shape,
    skip: Shape | None = None,
    gate: Shape | None = None,
    *args: Any,
    **kwargs: Any,
) -> int:
    return math.prod(u) * (9 * a[-1] + (skip is not None) + (gate is not None))


def fft_complex(x: Shape, dim: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return _fft(5.0, x, dim)


def fft_from_real(x: Shape, dim: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return _fft(2.5, x, dim)


def fft_to_real(x: Shape, dim: Sequence[int], *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return _fft(2.5, out_shape, dim)


def attention(query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _rows(x: Shape) -> int:
    return math.prod(x[:-1])


def _fft(each: float, shape: Shape, dim: Sequence[int]) -> int:
    """Transforms over the dimensions `dim` of `shape`; where one side is real, that side's shape."""
    points = math.prod(shape[d] for d in dim)
    return round(each * math.prod(shape) * math.log2(points)) if points else 0


def _register(op: Any, formula: Callable[..., int], get_raw: bool = False) -> None:
    if op not in flop_registry:  # a later PyTorch may have a formula of its own
        register_flop_formula(op, get_raw=get_raw)(formula)


for _formula in (mlp, linear_cross_entropy, causal_conv1d, gated_rela, key_sums, selective_scan):
    _register(getattr(torch.ops.recgrela, _formula.__name__), _formula)
_register(torch.ops.recgrela.linear_scan, linear_scan, get_raw=True)  # its type counts
_register(torch.ops.aten._fft_c2c, fft_complex)
_register(torch.ops.aten._fft_r2c, fft_from_real)
_register(torch.ops.aten._fft_c2r, fft_to_real)
_register(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, attention)
