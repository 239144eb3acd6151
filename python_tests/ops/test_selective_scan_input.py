"""What selective_scan and its operator refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from recgrela.ops import selective_scan


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"u": torch.randn(7)}, ValueError, r"with cu_seqlens u must be \[T, D\]"),
        ({"u": torch.randn(7, 4).half()}, TypeError, "delta is torch.float32, u is torch.float16"),
        ({"delta": torch.randn(6, 4)}, ValueError, r"delta must be \[7, 4\]"),
        ({"A": torch.randn(4)}, ValueError, r"A must be \[4, N\] with at least one state"),
        ({"A": torch.randn(4, 0)}, ValueError, r"A must be \[4, N\] with at least one state"),
        ({"A": torch.randn(5, 3)}, ValueError, r"A must be \[4, 3\]"),
        ({"A": torch.randn(4, 3).double()}, TypeError, "A is torch.float64; with u in torch.float32"),
        ({"B": torch.randn(7, 2)}, ValueError, r"B must be \[7, 3\]"),
        ({"C": torch.randn(7, 3).double()}, TypeError, "C is torch.float64"),
        ({"D": torch.randn(3)}, ValueError, r"D must be \[4\]"),
        ({"D": torch.randn(4, device="meta")}, ValueError, "D is on meta"),
        ({"z": torch.randn(7, 3)}, ValueError, r"z must be \[7, 4\]"),
        ({"delta_bias": torch.randn(5)}, ValueError, r"delta_bias must be \[4\]"),
        ({"initial_state": torch.randn(1, 4, 3)}, ValueError, r"initial_state must be \[2, 4, 3\]"),
        ({"cu_seqlens": None}, ValueError, "need cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0, 8])}, RuntimeError, "end at 7"),
        ({"cu_seqlens": torch.tensor([0, 2**63 - 1, -(2**63), 7])}, RuntimeError, "must not decrease"),
        ({"cu_seqlens": torch.tensor([0, 9, 7])}, RuntimeError, "must not decrease"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    args: dict[str, Any] = {
        "u": torch.randn(7, 4),
        "delta": torch.randn(7, 4),
        "A": torch.randn(4, 3),
        "B": torch.randn(7, 3),
        "C": torch.randn(7, 3),
        "cu_seqlens": torch.tensor([0, 3, 7]),
    }
    with pytest.raises(error, match=message):
        selective_scan(**(args | change))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"d_y": torch.randn(7, 3)}, "d_y must have the shape"),
        ({"d_final_state": torch.randn(1, 4, 3)}, "d_final_state must have the shape"),
        ({"delta": torch.randn(7, 3)}, "delta must have the shape"),
        ({"A": torch.randn(3, 3)}, "A must have the shape"),
        ({"A": torch.randn(4, 0)}, "A must have 1 to 256 states, not 0"),
        ({"B": torch.randn(6, 3)}, "B must have the shape"),
        ({"C": torch.randn(7, 2)}, "C must have the shape"),
        ({"D": torch.randn(3)}, "D must have the shape"),
        ({"z": torch.randn(6, 4)}, "z must have the shape"),
        ({"delta_bias": torch.randn(4).double()}, "delta_bias must have the shape"),
        ({"cu_seqlens": torch.tensor([0, 3, 8])}, "end at 7"),
        ({"initial_state": torch.randn(2, 3, 4)}, "initial_state must have the shape"),
        ({"checkpoints": torch.randn(1, 4, 3)}, "checkpoints must have the shape"),
    ],
)
def test_the_operator_itself_checks_shapes(change: dict[str, Any], message: str) -> None:
    """Direct calls of the operator must not access memory outside the tensors."""
    args: dict[str, Any] = {
        "d_y": torch.randn(7, 4),
        "d_final_state": torch.randn(2, 4, 3),
        "u": torch.randn(7, 4),
        "delta": torch.randn(7, 4),
        "A": torch.randn(4, 3),
        "B": torch.randn(7, 3),
        "C": torch.randn(7, 3),
        "D": torch.randn(4),
        "z": torch.randn(7, 4),
        "delta_bias": torch.randn(4),
        "cu_seqlens": torch.tensor([0, 3, 7]),
        "initial_state": torch.randn(2, 4, 3),
        "checkpoints": torch.randn(2, 4, 3),
        "delta_softplus": True,
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.recgrela.selective_scan_backward(*(args | change).values())
