"""Counted operations against counts by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from recgrela.compare.flops import count_flops
from recgrela.models import RecGRELAConfig, build
from recgrela.ops import causal_conv1d, gated_rela, linear_cross_entropy, linear_scan, mlp, selective_scan

T, D, H, K = 7, 16, 2, 4
W = D // H
OFFSETS = torch.tensor([0, 3, T])


def counted(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("joined", [True, False])
def test_gated_rela(causal: bool, joined: bool) -> None:
    x, taps = torch.randn(T, D), torch.randn(D, K)
    q, k = (torch.randn(T, 2 * D), None) if joined else (x, x)
    options = {"num_heads": H, "causal": causal}
    state = 2 * T * H * W * W  # k v^T of each head, added up
    query = 2 * T * H * W * W  # q times that
    normaliser = 2 * T * D + 2 * T * D  # the sum of keys, taken as a multiply-add, and q times it
    plain = counted(lambda: gated_rela(q, k, x, None, OFFSETS, **options))
    assert plain == state + query + normaliser
    more = {"conv_weight": taps, "conv_bias": torch.zeros(D)}
    assert counted(lambda: gated_rela(q, k, x, x, OFFSETS, **more, **options)) == plain + 2 * T * D * K


def test_key_sums_is_the_keys_half_of_it() -> None:
    x = torch.randn(T, D)
    assert counted(lambda: torch.ops.recgrela.key_sums(x, x, OFFSETS, None, H)) == 2 * T * D * W + 2 * T * D


def test_mlp_counts_as_its_two_layers() -> None:
    x, w1, w2 = torch.randn(T, D), torch.randn(40, D), torch.randn(D, 40)
    fused = counted(lambda: mlp(x, w1, torch.zeros(40), w2, torch.zeros(D), activation="gelu"))
    plain = counted(lambda: F.linear(F.gelu(F.linear(x, w1, torch.zeros(40))), w2, torch.zeros(D)))
    assert fused == plain == 2 * T * D * 40 * 2


def test_causal_conv1d_counts_as_a_convolution() -> None:
    x, weight = torch.randn(T, D), torch.randn(D, K)
    one = torch.tensor([0, T])
    padded = F.pad(x.T[None], (K - 1, 0))
    plain = counted(lambda: F.conv1d(padded, weight[:, None], groups=D))
    assert counted(lambda: causal_conv1d(x, weight, None, one)) == plain == 2 * T * D * K


def test_linear_cross_entropy_with_its_gradients() -> None:
    hidden, weight = torch.randn(T, D, requires_grad=True), torch.randn(30, D, requires_grad=True)
    target = torch.randint(30, (T,))
    once = 2 * T * D * 30
    assert counted(lambda: linear_cross_entropy(hidden, weight, target)) == 3 * once
    assert counted(lambda: linear_cross_entropy(hidden.detach(), weight, target)) == 2 * once
    assert counted(lambda: linear_cross_entropy(hidden.detach(), weight.detach(), target)) == once


def test_scans() -> None:
    x, cu_seqlens = torch.randn(T, D), torch.tensor([0, T])
    assert counted(lambda: linear_scan(x, x, cu_seqlens)) == 2 * T * D
    assert counted(lambda: linear_scan(x.cfloat(), x[0].cfloat(), cu_seqlens)) == 8 * T * D
    a, b, d = torch.randn(D, 5), torch.randn(T, 5), torch.randn(D)
    assert counted(lambda: selective_scan(x, x, a, b, b, cu_seqlens=cu_seqlens)) == 9 * T * D * 5
    assert counted(lambda: selective_scan(x, x, a, b, b, d, x, d, cu_seqlens)) == 9 * T * D * 5 + 2 * T * D


def test_ffts() -> None:
    real, n = torch.randn(3, 16), 16
    spectrum = torch.fft.rfft(real)
    half = 2.5 * 3 * n * math.log2(n)
    assert counted(lambda: torch.fft.rfft(real)) == half
    assert counted(lambda: torch.fft.irfft(spectrum, n=n)) == half
    assert counted(lambda: torch.fft.fft(torch.randn(3, n, dtype=torch.complex64))) == 2 * half
    assert counted(lambda: torch.fft.rfft(torch.randn(n, 3), dim=0)) == half
    plane = torch.randn(3, 4, 4, dtype=torch.complex64)
    assert counted(lambda: torch.fft.fft2(plane)) == 2 * half


@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": torch.ones(6, 6).tril().bool()}, {}])
def test_attention_on_the_cpu(options: dict) -> None:
    q = torch.randn(2, 3, 6, 8)
    attention = counted(lambda: F.scaled_dot_product_attention(q, q, q, **options))
    assert attention == 2 * (2 * 2 * 3 * 6 * 6 * 8)
    products = counted(lambda: (q @ q.transpose(-1, -2)).softmax(-1) @ q)
    assert attention == products


def test_a_whole_model_by_hand() -> None:
    """Two blocks: the first computes every row, the last keys and values of every row and else one row."""
    n_items, length, ratio, taps = 31, 10, 4, 4
    model = build(RecGRELAConfig(hidden_size=D, num_heads=H, num_layers=2, mlp_ratio=ratio), n_items, length)
    square = 2 * D * D  # one row through one D x D layer
    per_row = 5 * square + 2 * ratio * square  # gate, input, query, key, output; the MLP's two layers
    first = length * (per_row + 4 * D * W + 4 * D + 2 * D * taps)
    keys = length * (2 * square + 2 * D * W + 2 * D)  # the input and key projections, key_sums
    query = 3 * square + 2 * ratio * square + 2 * D * W  # gate, query, output; the MLP; query x state
    flops = count_flops(model.train())
    assert flops.encoder == first + keys + query
    assert flops.scores == 2 * D * n_items
    assert flops.total == flops.encoder + flops.scores
    assert model.training
    assert count_flops(model, 2 * length).encoder == 2 * first + 2 * keys + query
