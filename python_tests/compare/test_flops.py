"""Counted operations of models, FFTs and attention against counts by hand; ops count in their own tests."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from python_tests.support.tensors import flops_of
from recgrela.compare.flops import count_flops
from recgrela.models import RecGRELAConfig, build

D, H = 16, 2
W = D // H


def test_ffts() -> None:
    real, n = torch.randn(3, 16), 16
    spectrum = torch.fft.rfft(real)
    half = 2.5 * 3 * n * math.log2(n)
    assert flops_of(lambda: torch.fft.rfft(real)) == half
    assert flops_of(lambda: torch.fft.irfft(spectrum, n=n)) == half
    assert flops_of(lambda: torch.fft.fft(torch.randn(3, n, dtype=torch.complex64))) == 2 * half
    assert flops_of(lambda: torch.fft.rfft(torch.randn(n, 3), dim=0)) == half
    plane = torch.randn(3, 4, 4, dtype=torch.complex64)
    assert flops_of(lambda: torch.fft.fft2(plane)) == 2 * half


@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": torch.ones(6, 6).tril().bool()}, {}])
def test_attention_on_the_cpu(options: dict) -> None:
    q = torch.randn(2, 3, 6, 8)
    attention = flops_of(lambda: F.scaled_dot_product_attention(q, q, q, **options))
    assert attention == 2 * (2 * 2 * 3 * 6 * 6 * 8)
    products = flops_of(lambda: (q @ q.transpose(-1, -2)).softmax(-1) @ q)
    assert attention == products


def test_a_whole_model_by_hand() -> None:
    """Two blocks: the first computes every row, the last the keys and values of every row and one query."""
    n_items, length, ratio, kernel_size = 31, 10, 4, 4
    model = build(RecGRELAConfig(hidden_size=D, num_heads=H, num_layers=2, mlp_ratio=ratio), n_items, length)
    square = 2 * D * D  # one row through one D x D layer
    per_row = 5 * square + 2 * ratio * square  # gate, input, query, key, output; the MLP's two layers
    first = length * (per_row + 4 * D * W + 4 * D + 2 * D * kernel_size)
    keys = length * (2 * square + 6 * D)  # the input and key projections; key and value of each row
    # gate, input, query, output; the MLP; the query with the sum of keys; the convolution of one row
    query = 4 * square + 2 * ratio * square + 2 * D + 2 * D * kernel_size
    flops = count_flops(model.train())
    assert flops.encoder == first + keys + query
    assert flops.scores == 2 * D * n_items
    assert flops.total == flops.encoder + flops.scores
    assert model.training
    assert count_flops(model, 2 * length).encoder == 2 * first + 2 * keys + query
