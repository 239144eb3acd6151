"""The CUDA operators of the steps in place, run on CPU tensors by the SIMT host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.kernels.test_cuda_ops_on_cpu import LaunchesOfOperators
from python_tests.ops.step_case import EXAMPLES, VARIANTS, Step, rela
from python_tests.support.tensors import assert_close
from recgrela.ops import OPS
from tools.step_cost.launches import launches_of

TOLERANCES = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
WITH_KERNELS = [name for name in EXAMPLES if "cuda" in OPS[name].kernels]
HEADS = {8, 16, 32, 64, 128}


def check(simt: Any, step: Step) -> None:
    expected = step.copy(torch.float64).reference()
    with simt():
        got = step.results()
    for name, x in expected.items():
        if x.is_floating_point():
            assert_close(name, x, got[name], TOLERANCES[step.rows_dtype], scale=1.0)
        else:
            assert torch.equal(x, got[name])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_every_variant(simt: Any, variant: str, dtype: torch.dtype) -> None:
    step = VARIANTS[variant]()
    if step.name not in WITH_KERNELS:
        pytest.skip(f"{step.name} has no CUDA kernel")
    if step.name == "gated_rela_step" and step.state["kv_state"].shape[-1] not in HEADS:
        pytest.skip("no kernel for such heads")
    check(simt, step.copy(dtype))


def test_states_that_are_slices(simt: Any) -> None:
    """The states of sequences are far apart, and not aligned to 16 bytes."""
    for name in WITH_KERNELS:
        step = EXAMPLES[name](3).copy(torch.float32)
        for n, x in step.state.items():
            memory = torch.zeros(3, x[0].numel() + 3, dtype=x.dtype)
            step.state[n] = memory[:, 1:-2].unflatten(1, x.shape[1:]).copy_(x) if x.dim() > 1 else x
        expected = step.copy(torch.float64).reference()
        with simt():
            y = step.call()
        for n, x in {"y": y, **step.state}.items():
            assert_close(n, expected[n].double(), x.double(), 3e-6, scale=1.0)


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_launches_are_those_of_the_table(simt: Any, library: Path, name: str) -> None:
    step = EXAMPLES[name](5).copy(torch.float32)
    with simt(), LaunchesOfOperators(library) as mode:
        step.call()
    (args, launches) = mode.found[name]
    assert launches == launches_of(name, args) == 1


def test_bare_gated_rela_step_refuses_other_heads(simt: Any) -> None:
    step = rela(2, 12, 2).copy(torch.float32)
    with pytest.raises(RuntimeError, match="heads of 8, 16, 32, 64 or 128 channels, not 12"):
        torch.ops.recgrela_simt.gated_rela_step(*step.arguments())
