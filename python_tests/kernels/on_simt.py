"""Checks of the CUDA operators that the SIMT host runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.cases import Case
from python_tests.support.results import assert_results


def check(simt: Any, case: Case, layout: Any = None) -> None:
    x = case.operands()
    expected = case.on_cpu(x)
    with simt():
        got = case.results(x.with_layout(layout) if layout else x)
    assert_results(case, x, expected, got)


def check_compiled(simt: Any, f: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Checks that f compiles into one graph with the same gradients, which cannot be differentiated again.

    Args:
        simt: the fixture.
        f: a scalar function of public ops.
        leaves: its operands.

    Returns:
        The gradients.
    """
    with simt():
        expected = torch.autograd.grad(f(*leaves), leaves)
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(*leaves), leaves)
        with pytest.raises(NotImplementedError, match="second derivatives"):
            (d_x,) = torch.autograd.grad(f(*leaves), leaves[0], create_graph=True)
            d_x.sum().backward()
    assert all(torch.equal(a, c) for a, c in zip(expected, got, strict=True))
    return expected
