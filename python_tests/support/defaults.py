"""PyTorch's defaults of dtype and device, on which results must not depend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from python_tests.cases.compare import differing

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_every_default(results: Callable[[], dict[str, Tensor]]) -> None:
    """Asserts that results have the same bits under every default dtype and on another default device."""
    expected = results()
    for context in (*map(default_dtype, DTYPES), torch.device("meta")):
        with context:
            got = results()
        assert not differing(expected, got)
        assert {name: x.dtype for name, x in got.items()} == {name: x.dtype for name, x in expected.items()}
