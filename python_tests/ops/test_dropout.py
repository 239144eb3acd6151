from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from python_tests.cases.case import REAL_DTYPES
from python_tests.support.gpu import needs_gpu
from python_tests.support.tensors import assert_close
from recgrela.ops import dropout, dropout_reference
from recgrela.ops.dropout import draws_at, threshold_and_scale


def seed_of(n: int) -> torch.Tensor:
    return torch.tensor(n * 0x9E3779B97F4A7C15 % 2**63)


def example() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Operands and other arguments of a small call, for test_support.py."""
    return {"x": torch.randn(33, 20, dtype=torch.float64).requires_grad_()}, {"rate": 0.2, "seed": seed_of(1)}


@pytest.mark.parametrize("numel", [0, 1, 7, 63, 8192, 8193, 100_003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_reference(numel: int, dtype: torch.dtype, isa: str) -> None:
    x = torch.randn(numel, dtype=dtype).requires_grad_()
    d_y = torch.randn_like(x)
    for rate in (1e-9, 0.1, 0.5, 1 - 1e-9):
        expected, got = dropout_reference(x, rate, seed_of(3)), dropout(x, rate, seed_of(3))
        assert torch.equal(expected, got)
        assert torch.equal(*(torch.autograd.grad(y, x, d_y)[0] for y in (expected, got)))


def test_keeps_the_mean_and_the_rate() -> None:
    x = torch.ones(1_000_000)
    for rate in (0.1, 0.3, 0.9):
        y = dropout(x, rate)
        rate = round(rate * 2**16) / 2**16
        deviation = math.sqrt(rate * (1 - rate) / x.numel())
        assert abs((y == 0).double().mean().item() - rate) < 5 * deviation
        assert y[y != 0].unique().numel() == 1
        assert_close("scale", torch.tensor(1 / (1 - rate)), y.max(), 1e-6)


def test_elements_seeds_and_bits_are_independent() -> None:
    """Correlations between elements at small distances and usual row widths, and between similar seeds."""
    n = 1 << 20
    limit = 5 / math.sqrt(n)

    def kept(seed: torch.Tensor) -> torch.Tensor:
        return (dropout(torch.ones(n), 0.5, seed) != 0).float() * 2 - 1

    a = kept(seed_of(1))
    for distance in (1, 2, 3, 4, 8, 16, 50, 64, 128, 256, 1024, 65536):
        assert abs((a[distance:] * a[:-distance]).mean().item()) < limit, distance
    others = [seed_of(1) + 1, seed_of(1) + 2**32, seed_of(0), *(seed_of(1) ^ (1 << bit) for bit in range(63))]
    for other in others:
        assert abs((a * kept(other)).mean().item()) < limit, other


def test_draws_are_uniform() -> None:
    """A higher rate drops all elements that a lower one drops: chi-squared test over 64 rates."""
    x, seed, bins = torch.ones(1 << 20), seed_of(7), 64
    below = torch.tensor([(dropout(x, i / bins, seed) == 0).sum() for i in range(1, bins)])
    counts = torch.cat((below, torch.tensor([len(x)]))).diff(prepend=torch.tensor([0]))
    chi2 = ((counts - len(x) / bins) ** 2 / (len(x) / bins)).sum().item()
    assert abs(chi2 - (bins - 1)) < 5 * math.sqrt(2 * (bins - 1))


def test_draws_that_share_a_hash_are_independent() -> None:
    """The draws of i and i + 8 are the halves of one hash: correlations between their bits, and chi-squared
    test over 16 x 16 pairs of their upper bits and of their lower bits.
    """
    index = torch.arange(1 << 20)
    index = index[index & 8 == 0]
    n, pairs = len(index), 256
    first, second = (draws_at(index + distance, seed_of(5)) for distance in (0, 8))
    for draws in (first, second):
        assert draws.min() >= 0 and draws.max() < 2**16

    def bits(draws: torch.Tensor) -> torch.Tensor:
        return (draws[:, None] >> torch.arange(16) & 1).float() * 2 - 1

    assert (bits(first).T @ bits(second) / n).abs().max() < 5.5 / math.sqrt(n)
    for shift in (12, 0):
        counts = torch.bincount((first >> shift & 15) * 16 + (second >> shift & 15), minlength=pairs)
        chi2 = ((counts - n / pairs) ** 2 / (n / pairs)).sum().item()
        assert abs(chi2 - (pairs - 1)) < 5 * math.sqrt(2 * (pairs - 1))


def test_rates_are_multiples_of_2_to_the_power_of_minus_16() -> None:
    assert threshold_and_scale(0) == (0, 1)
    assert threshold_and_scale(0.25) == (2**14, 4 / 3)
    assert threshold_and_scale(0.3 * 2**-16) == (0, 1)
    assert threshold_and_scale(1 - 2**-20) == (2**16 - 1, 2**16)


def test_draws_from_torchs_generator() -> None:
    x = torch.ones(1000)
    a, b = dropout(x, 0.5), dropout(x, 0.5)
    assert not torch.equal(a, b)
    torch.manual_seed(0)
    assert torch.equal(a, dropout(x, 0.5))


def test_half_precision_and_strides() -> None:
    x = torch.randn(33, 20)
    expected = dropout(x, 0.25, seed_of(1))
    assert torch.equal(expected, dropout(x.T.contiguous().T, 0.25, seed_of(1)))
    half = dropout(x.bfloat16(), 0.25, seed_of(1))
    assert half.dtype == torch.bfloat16 and torch.equal(half == 0, expected == 0)


def test_opcheck_and_compile() -> None:
    x = torch.randn(40, dtype=torch.float64).requires_grad_()
    torch.library.opcheck(torch.ops.recgrela.dropout.default, (x, seed_of(1), 0.5))
    compiled = torch.compile(lambda x: dropout(x, 0.5, seed_of(1)), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), dropout(x, 0.5, seed_of(1)))
    assert torch.autograd.gradcheck(lambda x: dropout(x, 0.5, seed_of(1)), x)
    assert torch.autograd.gradgradcheck(lambda x: dropout(x, 0.5, seed_of(1)), x)


def test_bad_input() -> None:
    x = torch.randn(4)
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="rate must be at least 0 and below 1"):
            dropout(x, rate)
    with pytest.raises(TypeError, match="seed must be int64"):
        dropout(x, 0.5, torch.tensor(1.0))
    with pytest.raises(ValueError, match="seed must have 1 elements"):
        dropout(x, 0.5, torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="floating point"):
        dropout(x.long(), 0.5)
    with pytest.raises(RuntimeError, match="split the batch"):
        dropout(torch.zeros(1).expand(2**32 + 1), 0.5)


@needs_gpu
@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_cuda_equals_the_cpu_bit_by_bit(dtype: torch.dtype) -> None:
    for numel in (0, 1, 7, 8193, 1_000_003):
        x = torch.randn(numel).to(dtype)
        for part in (x, x[1:]):  # aligned or not
            expected = dropout(part, 0.3, seed_of(2))
            on_gpu = part.cuda().requires_grad_()
            y = dropout(on_gpu, 0.3, seed_of(2).cuda())
            (d_x,) = torch.autograd.grad(y, on_gpu, on_gpu.detach())
            assert torch.equal(expected, y.cpu()) and torch.equal(expected, d_x.cpu())
