"""Every op in python_tests/cases: CPU kernels against the reference, CUDA kernels against CPU kernels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.cases import CASES, Case
from python_tests.cases.capture import replay
from python_tests.cases.compare import TOLERANCES, differing, errors_of, fault_of
from python_tests.support.gpu import needs_gpu
from python_tests.support.results import LAYOUTS, UNEVEN, assert_results, check_on_cuda

EVERY_OP = pytest.mark.parametrize("op", CASES, ids=lambda op: op.op)
OPS_WITH_STATE = pytest.mark.parametrize("op", [op for op in CASES if op.has_state], ids=lambda op: op.op)
SMALL = [case for op in CASES for case in op.small(torch.float32) if max(case.lengths) < 100]


def with_dtypes(test: Any, ops: Iterable[type[Case]] = CASES) -> Any:
    """Runs a test for every op in every dtype that its CUDA kernels take."""
    pairs = [pytest.param(op, dtype, id=f"{op.op}-{dtype}") for op in ops for dtype in op.dtypes]
    return pytest.mark.parametrize("op, dtype", pairs)(test)


def with_dtypes_and_state(test: Any) -> Any:
    """Runs a test for every op that has a state in every dtype that its CUDA kernels take."""
    return with_dtypes(test, [op for op in CASES if op.has_state])


# On the CPU


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_cpu_kernels_equal_the_reference(case: Case) -> None:
    x = case.operands()
    fault = fault_of(errors_of(case.reference(x), case.on_cpu(x)), TOLERANCES[torch.float64])
    assert not fault
    assert_results(case, x, case.on_cpu(x), case.results(x))


@OPS_WITH_STATE
def test_a_state_equals_the_references(op: type[Case]) -> None:
    for case in op.variants((1, 17, 0, 33, 5), torch.float32, state=True):
        x = case.operands()
        expected, got = case.reference(x), case.on_cpu(x)
        numbers = {name: t for name, t in expected.items() if t.is_floating_point()}
        assert not fault_of(errors_of(numbers, got), TOLERANCES[torch.float64])
        assert any(name.startswith("final") for name in numbers)
        assert any(name.startswith("d_initial") for name in numbers)


@EVERY_OP
def test_operands_follow_from_the_seed(op: type[Case]) -> None:
    for case in op.variants((5, 3), torch.float32):
        first, again, other = case.operands(seed=1), case.operands(seed=1), case.operands(seed=2)
        assert not differing(first.inputs, again.inputs) and not differing(first.upstream, again.upstream)
        assert set(differing(first.inputs, other.inputs)) == set(first.inputs)


@EVERY_OP
def test_expectations_of_dense_forms_equal_our_kernels(
    op: type[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    for elements in (1, 1 << 22):  # one sequence at a time, all at once
        monkeypatch.setattr("python_tests.cases.case.MAX_ELEMENTS", elements)
        for case in op.variants((19,) * 6, torch.float64):
            x = case.operands()
            expected = case.expected(x)
            assert set(expected) == {"y", *(f"d_{name}" for name in x.inputs)}
            assert len(expected["y"]) >= 4 * case.rows_of("y")
            assert not fault_of(errors_of(expected, case.results(x)), TOLERANCES[torch.float64])


@EVERY_OP
def test_expectations_of_measured_cases(op: type[Case]) -> None:
    """Each case of benchmarks.gpu, with dropout too; shorter."""
    shorter = {
        replace(case, lengths=(7,) * 5) for case in (*op.headline(quick=True), *op.further(quick=True))
    }
    for case in shorter:
        x = case.operands()
        fault = fault_of(errors_of(case.expected(x), case.results(x)), TOLERANCES[case.dtype])
        assert not fault, f"{case}: {fault}"


# On a GPU


@needs_gpu
@with_dtypes
def test_cuda_equals_cpu(op: type[Case], dtype: torch.dtype) -> None:
    for case in op.small(dtype):
        check_on_cuda(case)


@needs_gpu
@with_dtypes_and_state
def test_cuda_equals_cpu_from_a_state(op: type[Case], dtype: torch.dtype) -> None:
    for lengths in ((1,), (0, 2, 300, 3), (1200, 5)):
        for case in op.variants(lengths, dtype, state=True, offsets=torch.int32):
            check_on_cuda(case)


@needs_gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@with_dtypes
def test_cuda_takes_any_strides(op: type[Case], dtype: torch.dtype, layout: str) -> None:
    for case in op.variants(UNEVEN, dtype):
        check_on_cuda(case, LAYOUTS[layout])


@needs_gpu
@with_dtypes
def test_cuda_repeats_itself_bit_by_bit(op: type[Case], dtype: torch.dtype) -> None:
    for case in op.variants((200,) * 64 + (900,), dtype):
        x = case.operands("cuda")
        assert not differing(case.results(x), case.results(x))


@needs_gpu
@EVERY_OP
@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)])
def test_cuda_takes_empty_batches(op: type[Case], lengths: tuple[int, ...]) -> None:
    for state in (False, True):
        for case in op.variants(lengths, torch.float32, state=state):
            check_on_cuda(case)


@needs_gpu
@with_dtypes
def test_cuda_graphs_capture_forward_and_backward(op: type[Case], dtype: torch.dtype) -> None:
    for case in op.variants((50,) * 4, dtype):
        fresh = case.operands("cuda", seed=1)
        expected: dict[str, Tensor] = case.results(fresh)
        assert not differing(expected, replay(case, case.operands("cuda"), fresh))
