from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from python_tests.cases import SelectiveScanCase
from python_tests.support.gpu import needs_gpu
from python_tests.support.results import UNEVEN as CUDA_LENGTHS
from python_tests.support.results import check_on_cuda
from recgrela.ops import selective_scan
from recgrela.ops.selective_scan import checkpoints_shape


@needs_gpu
@pytest.mark.parametrize("num_states", [1, 8, 16, 20, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", SelectiveScanCase.dtypes)
def test_cuda_with_any_number_of_states(dtype: torch.dtype, num_states: int) -> None:
    sizes = {"channels": 40, "num_states": num_states}
    check_on_cuda(
        SelectiveScanCase(lengths=CUDA_LENGTHS, dtype=dtype, state=True, offsets=torch.int32, **sizes)
    )


@needs_gpu
@pytest.mark.parametrize("channels", [1, 128, 300])
@pytest.mark.parametrize("dtype", SelectiveScanCase.dtypes)
def test_cuda_with_any_number_of_channels(dtype: torch.dtype, channels: int) -> None:
    check_on_cuda(SelectiveScanCase(lengths=CUDA_LENGTHS, dtype=dtype, channels=channels, state=True))


@needs_gpu
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("without", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
def test_cuda_without_optional_operands(without: tuple[str, ...], softplus: bool) -> None:
    parts = {"without": without, "softplus": softplus}
    check_on_cuda(SelectiveScanCase(lengths=(70, 2, 1), channels=24, state=True, **parts))


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_long_sequences_are_cut(dtype: torch.dtype) -> None:
    check_on_cuda(SelectiveScanCase(lengths=(1500, 1, 700), dtype=dtype, channels=8, state=True))


@needs_gpu
@pytest.mark.parametrize("dtype, num_states", [(torch.float64, 16), (torch.bfloat16, 300)])
def test_cuda_by_reference(dtype: torch.dtype, num_states: int) -> None:
    sizes = {"channels": 4, "num_states": num_states}
    check_on_cuda(SelectiveScanCase(lengths=(20, 0, 3), dtype=dtype, state=True, **sizes))


def on_a_fake_gpu(dtype: torch.dtype, A_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Calls the op on fake CUDA tensors: checks, shapes and dtypes need no GPU."""
    with FakeTensorMode(), torch.device("cuda"):
        u, b = torch.empty(70, 6, dtype=dtype), torch.empty(70, 5, dtype=dtype)
        A, offsets = torch.empty(6, 5, dtype=A_dtype), torch.empty(3).long()
        assert checkpoints_shape(u, A, offsets) == (70 // 16 + 2, 6, 5)
        return selective_scan(u, u, A, b, b, cu_seqlens=offsets, return_state=True)


@pytest.mark.parametrize("dtype", SelectiveScanCase.dtypes)
def test_cuda_shapes_and_dtypes(dtype: torch.dtype) -> None:
    y, state = on_a_fake_gpu(dtype)
    assert (y.shape, y.dtype, y.device.type) == ((70, 6), dtype, "cuda")
    assert (state.shape, state.dtype) == ((2, 6, 5), torch.float32)


def test_cuda_A_is_float32() -> None:
    _, state = on_a_fake_gpu(torch.float16, torch.float16)  # converted
    assert state.dtype == torch.float32
    with pytest.raises(TypeError, match=r"A is torch.float64; with u in torch.float16 it must be"):
        on_a_fake_gpu(torch.float16, torch.float64)
