from __future__ import annotations

import cmath

import pytest
import torch

from python_tests.support.tensors import assert_close
from recgrela.ops import rotary_table, rotate


def test_rotate_is_complex_multiplication() -> None:
    x = torch.randn(5, 6, dtype=torch.float64)
    got = rotate(x, rotary_table(9, 6, base=100.0, dtype=torch.float64))
    for i in range(5):
        for t in range(3):
            z = complex(x[i, 2 * t], x[i, 2 * t + 1]) * cmath.exp(1j * i * 100.0 ** (-2 * t / 6))
            assert_close(
                "pair", torch.tensor([z.real, z.imag], dtype=torch.float64), got[i, 2 * t : 2 * t + 2], 1e-14
            )


def test_far_positions_keep_their_angles() -> None:
    exact = rotary_table(200_000, 4, dtype=torch.float64)
    assert_close("table", exact, rotary_table(200_000, 4).double(), 1e-7)


def test_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="dim must be even"):
        rotary_table(4, 3)
