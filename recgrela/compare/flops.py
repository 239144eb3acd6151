"""Floating-point operations for scoring one history, counted op by op.

`torch.utils.flop_counter` has formulas for matrix products, convolutions and attention on CUDA. The ops in
recgrela/ops register their own formulas, and importing this module adds those for FFTs and for attention on
the CPU.

Conventions, for the forward pass:

- A multiply-add counts as 2 (complex: 8) in matrix products, attention, convolutions and scans.
- Elementwise work (activations, norms, rotations, gates, biases, divisions), lookups and sums over a row are
  not counted, inside or outside of fused ops, so that fusing does not change a count.
- Attention counts every query with every key, whatever the mask, as in PyTorch.

    FFT of n points       5 n log2 n complex, half of that real (the convention of FFTW)
    attention             4 T^2 D
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from recgrela.models import SequenceModel

Shape = Sequence[int]


@dataclass(frozen=True)
class Flops:
    """Operations for scoring one history.

    Attributes:
        encoder: operations up to the last hidden state.
        scores: operations for the scores of all items from that state.
    """

    encoder: int
    scores: int

    @property
    def total(self) -> int:
        return self.encoder + self.scores


@torch.no_grad()
def count_flops(model: SequenceModel, length: int | None = None) -> Flops:
    """Count the operations for scoring every item after one history.

    Args:
        model: a model in any mode and on any device; a copy on the CPU is used.
        length: number of items of the history; None for `model.max_len`.
    """
    model = copy.deepcopy(model).cpu().eval()  # fused ops of a GPU, such as cuDNN's GRU, have no formulas
    length = length or model.max_len
    items = torch.arange(length) % (model.n_items - 1) + 1
    cu_seqlens = torch.tensor([0, length])
    with FlopCounterMode(display=False) as whole:
        model.score_packed(items, cu_seqlens, length)
    with FlopCounterMode(display=False) as encoder:
        model.hidden_states(items, cu_seqlens, length, True)
    counted = encoder.get_total_flops()
    return Flops(counted, whole.get_total_flops() - counted)


def fft_complex(x: Shape, dim: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return _fft(5.0, x, dim)


def fft_from_real(x: Shape, dim: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return _fft(2.5, x, dim)


def fft_to_real(x: Shape, dim: Sequence[int], *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return _fft(2.5, out_shape, dim)


def attention(query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _fft(each: float, shape: Shape, dim: Sequence[int]) -> int:
    """Operations of transforms over the dimensions `dim` of `shape`, the shape of the real side if any."""
    points = math.prod(shape[d] for d in dim)
    return round(each * math.prod(shape) * math.log2(points)) if points else 0


def _register(op: Any, formula: Callable[..., int]) -> None:
    if op not in flop_registry:  # later versions of PyTorch may have a formula
        register_flop_formula(op)(formula)


_register(torch.ops.aten._fft_c2c, fft_complex)
_register(torch.ops.aten._fft_r2c, fft_from_real)
_register(torch.ops.aten._fft_c2r, fft_to_real)
_register(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, attention)
