"""The scans on a GPU, against the CPU kernels in float64; and what can be known of them without one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from python_tests.cases import Case, LinearScanCase, SelectiveScanCase
from python_tests.support.gpu import needs_gpu
from python_tests.support.results import UNEVEN, assert_results
from recgrela.ops import linear_scan, selective_scan
from recgrela.ops.selective_scan import checkpoints_shape


def check(case: Case) -> None:
    x = case.operands()
    assert_results(case, x, case.on_cpu(x), case.results(x.cast("cuda")))


@needs_gpu
@pytest.mark.parametrize("per_step", [True, False])
@pytest.mark.parametrize("channels", [1, 30, 64, 200])
@pytest.mark.parametrize("dtype", LinearScanCase.dtypes)
def test_cuda_linear_scan(dtype: torch.dtype, channels: int, per_step: bool) -> None:
    sizes = {"channels": channels, "per_step": per_step}
    check(LinearScanCase(lengths=UNEVEN, dtype=dtype, state=True, offsets=torch.int32, **sizes))


@needs_gpu
@pytest.mark.parametrize("num_states", [1, 8, 16, 20, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", SelectiveScanCase.dtypes)
def test_cuda_selective_scan_with_any_number_of_states(dtype: torch.dtype, num_states: int) -> None:
    sizes = {"channels": 40, "num_states": num_states}
    check(SelectiveScanCase(lengths=UNEVEN, dtype=dtype, state=True, offsets=torch.int32, **sizes))


@needs_gpu
@pytest.mark.parametrize("channels", [1, 128, 300])
@pytest.mark.parametrize("dtype", SelectiveScanCase.dtypes)
def test_cuda_selective_scan_with_any_number_of_channels(dtype: torch.dtype, channels: int) -> None:
    check(SelectiveScanCase(lengths=UNEVEN, dtype=dtype, channels=channels, state=True))


@needs_gpu
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("without", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
def test_cuda_selective_scan_with_parts_off(without: tuple[str, ...], softplus: bool) -> None:
    parts = {"without": without, "softplus": softplus}
    check(SelectiveScanCase(lengths=(70, 2, 1), channels=24, state=True, **parts))


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_long_sequences_are_cut(dtype: torch.dtype) -> None:
    for per_step in (True, False):
        lengths = (3000, 1, 700)
        check(LinearScanCase(lengths=lengths, dtype=dtype, channels=8, per_step=per_step, state=True))
    check(SelectiveScanCase(lengths=(1500, 1, 700), dtype=dtype, channels=8, state=True))


@needs_gpu
def test_cuda_by_reference() -> None:
    """The results in double precision, and with more states than the kernels take."""
    lengths = (20, 0, 3)
    for case in (
        LinearScanCase(lengths=lengths, dtype=torch.float64, channels=8),
        LinearScanCase(lengths=lengths, dtype=torch.complex128, channels=8, per_step=False, state=True),
        SelectiveScanCase(lengths=lengths, dtype=torch.float64, channels=8, state=True),
        SelectiveScanCase(lengths=lengths, dtype=torch.bfloat16, channels=4, num_states=300),
    ):
        check(case)


# The checks read shapes and dtypes only, so that they can be tested without a GPU.
def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="cuda")


def fake_linear(dtype: torch.dtype, a_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    with FakeTensorMode():
        x, a = empty(7, 6, dtype=dtype), empty(6, dtype=a_dtype)
        return linear_scan(x, a, empty(3, dtype=torch.int64), return_state=True)


def fake_selective(dtype: torch.dtype, wide: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    with FakeTensorMode():
        x, b, offsets = empty(70, 6, dtype=dtype), empty(70, 5, dtype=dtype), empty(3, dtype=torch.int64)
        A = empty(6, 5, dtype=wide)
        assert checkpoints_shape(x, A, offsets) == (70 // 32 + 2, 6, 5)
        return selective_scan(x, x, A, b, b, cu_seqlens=offsets, return_state=True)


@pytest.mark.parametrize("dtype", LinearScanCase.dtypes)
def test_cuda_linear_scan_shapes_and_dtypes(dtype: torch.dtype) -> None:
    wide = dtype if dtype.is_complex else torch.float32
    h, state = fake_linear(dtype, wide)
    assert (h.shape, h.dtype, h.device.type) == ((7, 6), dtype, "cuda")
    assert (state.shape, state.dtype) == ((2, 6), wide)


@pytest.mark.parametrize("dtype", SelectiveScanCase.dtypes)
def test_cuda_selective_scan_shapes_and_dtypes(dtype: torch.dtype) -> None:
    y, state = fake_selective(dtype)
    assert (y.shape, y.dtype, y.device.type) == ((70, 6), dtype, "cuda")
    assert (state.shape, state.dtype) == ((2, 6, 5), torch.float32)


def test_cuda_linear_scan_keeps_coefficients_of_halves_wide() -> None:
    with pytest.raises(TypeError, match=r"a is torch.bfloat16; with x in torch.bfloat16 it must be"):
        fake_linear(torch.bfloat16, torch.bfloat16)


def test_cuda_selective_scan_keeps_A_wide() -> None:
    with pytest.raises(TypeError, match=r"A is torch.float16; with u in torch.float16 it must be"):
        fake_selective(torch.float16, torch.float16)
