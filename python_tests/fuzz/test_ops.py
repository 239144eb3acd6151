"""Ops with operands of other shapes, dtypes, strides and offsets: the reference's results, or a refusal."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from python_tests.cases import CASES
from python_tests.fuzz.conftest import Fuzz
from python_tests.fuzz.op_targets import CHANGES, LAYOUTS, OFFSETS, names_of
from python_tests.support.sandbox import Sandbox

TARGETS = "python_tests.fuzz.op_targets"


@pytest.mark.parametrize("op", range(len(CASES)), ids=[op.op for op in CASES])
def test_changed_operands(op: int, sandbox: Sandbox, fuzz: Fuzz) -> None:
    operands = st.tuples(st.sampled_from([*LAYOUTS, *CHANGES]), st.sampled_from(names_of(op)))
    offsets = st.tuples(st.sampled_from(list(OFFSETS)), st.just("cu_seqlens"))
    calls = st.tuples(st.integers(0, 7), st.lists(operands | offsets, max_size=2))
    fuzz(lambda call: sandbox.call(f"{TARGETS}:call_op", op, *call), calls, examples=20)
