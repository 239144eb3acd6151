"""Lengths, layouts and comparisons for tests of an op's cases."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from python_tests.cases import Case, Operands
from python_tests.cases.compare import MAX_ERRORS
from python_tests.support.tensors import assert_close

UNEVEN = (1, 257, 0, 3, 64, 2, 65, 17, 16, 15)  # lengths around the kernels' chunks of 16, 32 and 64 rows
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "wide rows": lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
    "every second channel": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "rows that are not aligned": lambda x: torch.cat([x[..., :1], x], dim=-1)[..., 1:],
    "columns": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
}


def check_on_cuda(case: Case, layout: Callable[[Tensor], Tensor] | None = None) -> None:
    """Compares the op on CUDA with the CPU kernels in float64."""
    x = case.operands()
    on_gpu = x.cast("cuda")
    got = case.results(on_gpu.with_layout(layout) if layout else on_gpu)
    assert_results(case, x, case.on_cpu(x), got)


def assert_results(case: Case, x: Operands, expected: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    """Asserts that results are close to the expected ones; gradients have the dtypes of their operands."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        have = got[name].cpu()
        if name.startswith("d_"):
            assert have.dtype == x.inputs[name.removeprefix("d_")].dtype, name
        if not (value.is_floating_point() or value.is_complex()):
            assert torch.equal(have, value), name
            continue
        pair = (torch.view_as_real(t) if t.is_complex() else t for t in (value, have))
        assert_close(name, *pair, MAX_ERRORS[case.dtype], scale=case.term_size)
