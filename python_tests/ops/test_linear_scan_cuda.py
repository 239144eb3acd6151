from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from python_tests.cases import LinearScanCase
from python_tests.support.gpu import needs_gpu
from python_tests.support.results import UNEVEN as CUDA_LENGTHS
from python_tests.support.results import check_on_cuda
from recgrela.ops import linear_scan


@needs_gpu
@pytest.mark.parametrize("per_step", [True, False])
@pytest.mark.parametrize("channels", [1, 30, 64, 200])
@pytest.mark.parametrize("dtype", LinearScanCase.dtypes)
def test_cuda_equals_cpu(dtype: torch.dtype, channels: int, per_step: bool) -> None:
    sizes = {"channels": channels, "per_step": per_step}
    check_on_cuda(LinearScanCase(lengths=CUDA_LENGTHS, dtype=dtype, state=True, offsets=torch.int32, **sizes))


@needs_gpu
@pytest.mark.parametrize("per_step", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_long_sequences_are_cut(dtype: torch.dtype, per_step: bool) -> None:
    lengths = (3000, 1, 700)
    check_on_cuda(LinearScanCase(lengths=lengths, dtype=dtype, channels=8, per_step=per_step, state=True))


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_cuda_by_reference(dtype: torch.dtype) -> None:
    for per_step in (True, False):
        check_on_cuda(
            LinearScanCase(lengths=(20, 0, 3), dtype=dtype, channels=8, per_step=per_step, state=True)
        )


def on_a_fake_gpu(dtype: torch.dtype, a_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Calls the op on fake CUDA tensors: checks, shapes and dtypes need no GPU."""
    with FakeTensorMode(), torch.device("cuda"):
        x, a, offsets = torch.empty(7, 6, dtype=dtype), torch.empty(6, dtype=a_dtype), torch.empty(3).long()
        return linear_scan(x, a, offsets, return_state=True)


@pytest.mark.parametrize("dtype", LinearScanCase.dtypes)
def test_cuda_shapes_and_dtypes(dtype: torch.dtype) -> None:
    state_dtype = dtype if dtype.is_complex else torch.float32
    h, state = on_a_fake_gpu(dtype, state_dtype)
    assert (h.shape, h.dtype, h.device.type) == ((7, 6), dtype, "cuda")
    assert (state.shape, state.dtype) == ((2, 6), state_dtype)


def test_cuda_coefficients_of_half_precision_stay_float32() -> None:
    with pytest.raises(TypeError, match=r"a is torch.bfloat16; with x in torch.bfloat16 it must be"):
        on_a_fake_gpu(torch.bfloat16, torch.bfloat16)
