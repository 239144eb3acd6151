"""PyTorch's defaults of dtype and device do not change results; empty sequences have defined results."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature

import pytest
import torch

from python_tests.cases import CASES, Case
from python_tests.cases.compare import differing
from python_tests.ops.step_case import EXAMPLES, Step
from python_tests.support.defaults import DTYPES, check_every_default, default_dtype
from recgrela.ops import dropout
from recgrela.ops.linear_cross_entropy import unit_gradient

EVERY_OP = pytest.mark.parametrize("op", CASES, ids=lambda op: op.op)


@EVERY_OP
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("state", [False, True], ids=["start", "state"])
def test_results_do_not_depend_on_defaults(op: type[Case], dtype: torch.dtype, state: bool) -> None:
    for case in op.variants((4, 0, 3), dtype, state=state and op.has_state):
        x = case.operands()
        check_every_default(lambda case=case, x=x: case.results(x))
        if dtype != torch.bfloat16:  # the definitions take operands of one dtype
            check_every_default(lambda case=case, x=x: case.results(x, type(case).definition))


@pytest.mark.parametrize("name", EXAMPLES)
def test_results_of_steps_do_not_depend_on_defaults(name: str) -> None:
    step: Step = EXAMPLES[name](3)
    check_every_default(step.results)
    check_every_default(step.reference)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_of_dropout_do_not_depend_on_defaults(dtype: torch.dtype) -> None:
    x, seed = torch.randn(40, dtype=dtype), torch.tensor(7)
    check_every_default(lambda: {"y": dropout(x, 0.3, seed)})


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_unit_gradient_does_not_depend_on_defaults(dtype: torch.dtype) -> None:
    with default_dtype(dtype):
        assert unit_gradient(torch.device("cpu")).dtype == torch.float32


OF_SEQUENCES = [op for op in CASES if "cu_seqlens" in signature(op.function).parameters]


@pytest.mark.parametrize("state", [False, True], ids=["start", "state"])
@pytest.mark.parametrize("op", OF_SEQUENCES, ids=lambda op: op.op)
def test_an_empty_sequence_is_zeros_and_keeps_its_state(op: type[Case], state: bool) -> None:
    for case in op.variants((0, 0), torch.float64, state=state):
        x = case.operands()
        results = case.results(x)
        assert not differing(case.call(x, type(case).definition), results)
        for name, result in results.items():
            if name.startswith("final"):
                expected = x.inputs.get(f"initial_{name.removeprefix('final_')}")
                expected = x.constants.get(f"initial_{name.removeprefix('final_')}", expected)
                assert torch.equal(result, expected), name
            elif name.startswith("d_initial"):  # the state passes through
                upstream = x.upstream.get(f"final_{name.removeprefix('d_initial_')}")
                assert torch.equal(result, torch.zeros_like(result) if upstream is None else upstream), name
            else:
                assert torch.equal(result, torch.zeros_like(result)), name


@pytest.mark.parametrize("op", OF_SEQUENCES, ids=lambda op: op.op)
def test_empty_sequences_change_no_other_row(op: type[Case]) -> None:
    for with_empty, without in zip(
        op.variants((0, 9, 0, 2, 0), torch.float64), op.variants((9, 2), torch.float64), strict=True
    ):
        x, plain = with_empty.operands(), without.operands()
        present = x.cu_seqlens.diff() > 0

        def present_rows(t: torch.Tensor, present: torch.Tensor = present) -> torch.Tensor:
            return t[present] if len(t) == len(present) else t

        y = replace(
            plain,
            inputs={n: present_rows(t.detach()).requires_grad_() for n, t in x.inputs.items()},
            upstream={n: present_rows(t) for n, t in x.upstream.items()},
            constants={n: present_rows(t) for n, t in x.constants.items()},
        )
        got, expected = with_empty.results(x), without.results(y)
        assert not differing(expected, {n: present_rows(t) for n, t in got.items()})
        for name, t in got.items():
            if len(t) == len(present) and t.dim() > 1:
                assert not t[~present].any(), name
