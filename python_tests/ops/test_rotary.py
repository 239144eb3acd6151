from __future__ import annotations

import cmath
import math
from fractions import Fraction

import pytest
import torch

from python_tests.support.tensors import assert_close
from recgrela.ops import rotary_angles, rotary_table, rotary_turns, rotate


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


EXACT_PI = Fraction(
    "3.1415926535897932384626433832795028841971693993751058209749445923078164062862089986280348253421170679"
)


def exact_angles(position: int, dim: int) -> list[float]:
    """The angles of `rotary_table`, reduced to one turn without rounding."""
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    turns = [position * Fraction(f) / (2 * EXACT_PI) for f in frequencies.tolist()]
    return [float((t - round(t)) * 2 * EXACT_PI) for t in turns]


def test_turns_give_the_angles_of_the_table() -> None:
    turns, position = rotary_turns(64), torch.arange(5000)
    expected = rotary_table(5000, 64, dtype=torch.float64)
    assert_close("angles", expected, rotary_angles(position, turns, dtype=torch.float64), 1e-12)
    assert rotary_angles(position, turns).dtype == torch.float32


@pytest.mark.parametrize("position", [0, 1, 2**20, 2**20 + 1, 2**31 + 5, 2**40 + 3])
def test_turns_are_exact_at_far_positions(position: int) -> None:
    dim = 64
    angles = torch.tensor(exact_angles(position, dim), dtype=torch.float64)
    expected = torch.stack([angles.cos(), angles.sin()], dim=-1)[None]
    got = rotary_angles(torch.tensor([position]), rotary_turns(dim), dtype=torch.float64)
    assert_close("angles", expected, got, 2 * math.pi * position * 2.0**-65 + 1e-15)
    if position >= 2**20:  # products of float32 numbers have lost the angle
        frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        products = torch.tensor(position).float() * frequencies.float()
        assert (products.cos() - expected[0, :, 0]).abs().max() > 1e-3


def test_turns_of_more_than_half_are_negative() -> None:
    turns = rotary_turns(4, base=0.1)  # frequencies 1 and 3.16
    assert turns[0] > 0 > turns[1]
    got = rotary_angles(torch.tensor([3]), turns, dtype=torch.float64)
    assert_close("angles", rotary_table(4, 4, 0.1, dtype=torch.float64)[3:], got, 1e-14)


def test_turns_of_an_odd_width_are_refused() -> None:
    with pytest.raises(ValueError, match="rotary_turns: dim must be even"):
        rotary_turns(3)
