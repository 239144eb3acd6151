"""The CUDA operators for CPU tensors, whose kernels the SIMT host runs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.support.simt import build_simt
from recgrela.ops import OPS
from recgrela.ops._library import AUTOGRAD, _no_second_derivative, _save_nothing, register_gradient
from recgrela.ops.gated_rela import op as gated_rela_op

CUDA_OPS = [op for op in OPS.values() if "cuda" in op.kernels]


@pytest.fixture(scope="module")
def library() -> Path:
    """Loads the CUDA operators for CPU tensors; returns the path of their library."""
    build = build_simt("recgrela_simt_ops", RECGRELA_TORCH=Path(torch.__file__).parent, RECGRELA_TESTS="ON")
    path = build / "librecgrela_simt_ops.so"
    torch.ops.load_library(path)
    for operator in (operator for op in CUDA_OPS for operator in op.operators()):
        gradient = AUTOGRAD.get(operator, (_save_nothing, partial(_no_second_derivative, operator)))
        register_gradient(f"recgrela_simt::{operator}", *gradient)
    return path


@pytest.fixture
def simt(library: Path, poisoned_memory: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Inside `with simt():` recgrela.ops calls the CUDA operators, in the dtypes that they take."""

    def switch() -> pytest.MonkeyPatch:
        patch = pytest.MonkeyPatch()
        for op in CUDA_OPS:
            for operator in op.operators():
                patch.setattr(torch.ops.recgrela, operator, getattr(torch.ops.recgrela_simt, operator))
            patch.setitem(op.kernels, "cpu", op.kernels["cuda"])
        patch.setattr(gated_rela_op, "SAVES_SUMS", {"cpu"})
        return patch

    class Simt:
        def __enter__(self) -> None:
            self.patch = switch()

        def __exit__(self, *_: object) -> None:
            self.patch.undo()

    yield Simt
