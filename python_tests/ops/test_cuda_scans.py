"""The scans on a GPU, against the CPU kernels in float64; and what can be known of them without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from python_tests.cases.scans import LINEAR_DTYPES, SELECTIVE_DTYPES, LinearCase, ScanCase, SelectiveCase
from python_tests.support.gpu import needs_gpu
from python_tests.support.tensors import cu_seqlens_of
from recgrela.ops import linear_scan, selective_scan
from recgrela.ops.selective_scan import checkpoints_shape

UNEVEN = [1, 257, 0, 3, 64, 2, 65, 17, 16, 15]


def check(case: ScanCase, **how: Any) -> None:
    case.check(case.results("cpu", wide=True), case.results("cuda", **how))


@needs_gpu
@pytest.mark.parametrize("per_step", [True, False])
@pytest.mark.parametrize("channels", [1, 30, 64, 200])
@pytest.mark.parametrize("dtype", LINEAR_DTYPES)
def test_cuda_linear_scan(dtype: torch.dtype, channels: int, per_step: bool) -> None:
    check(LinearCase(UNEVEN, channels, dtype, per_step=per_step, offsets=torch.int32))


@needs_gpu
@pytest.mark.parametrize("states", [1, 8, 16, 20, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", SELECTIVE_DTYPES)
def test_cuda_selective_scan_with_any_number_of_states(dtype: torch.dtype, states: int) -> None:
    check(SelectiveCase(UNEVEN, 40, states, dtype, offsets=torch.int32))


@needs_gpu
@pytest.mark.parametrize("channels", [1, 128, 300])
@pytest.mark.parametrize("dtype", SELECTIVE_DTYPES)
def test_cuda_selective_scan_with_any_number_of_channels(dtype: torch.dtype, channels: int) -> None:
    check(SelectiveCase(UNEVEN, channels, 16, dtype))


@needs_gpu
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("without", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
def test_cuda_selective_scan_with_parts_off(without: tuple[str, ...], softplus: bool) -> None:
    case = SelectiveCase([70, 2, 1], 24, 16, torch.float32, without=without, softplus=softplus)
    check(case)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_long_sequences_are_cut(dtype: torch.dtype) -> None:
    for per_step in (True, False):
        check(LinearCase([3000, 1, 700], 8, dtype, per_step=per_step))
    check(SelectiveCase([1500, 1, 700], 8, 16, dtype))


@needs_gpu
def test_cuda_strides_and_rows_that_are_not_aligned() -> None:
    for case in (
        LinearCase(UNEVEN, 32, torch.complex64, per_step=True),
        LinearCase(UNEVEN, 32, torch.bfloat16, per_step=True),
        SelectiveCase(UNEVEN, 32, 16, torch.bfloat16),
    ):
        for layout in (
            lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
            lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
            lambda x: torch.cat([x[..., :1], x], dim=-1)[..., 1:],
        ):
            check(case, layout=layout)


@needs_gpu
@pytest.mark.parametrize("dtype", SELECTIVE_DTYPES)
def test_cuda_scans_are_bitwise_equal_when_repeated(dtype: torch.dtype) -> None:
    lengths = [200] * 64 + [900]
    for case in (LinearCase(lengths, 64, dtype, per_step=False), SelectiveCase(lengths, 64, 16, dtype)):
        first, second = (case.results("cuda") for _ in range(2))
        assert all(torch.equal(first[name], value) for name, value in second.items())


@needs_gpu
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_cuda_empty_batches(lengths: list[int]) -> None:
    for case in (
        LinearCase(lengths, 8, torch.float32, per_step=False),
        SelectiveCase(lengths, 8, 16, torch.float32),
    ):
        check(case)


@needs_gpu
def test_cuda_graph_capture_of_the_scans() -> None:
    """Nothing in forward or backward waits for the device, or capture would fail."""
    x = torch.randn(200, 32, device="cuda", requires_grad=True)
    A, a = -torch.rand(32, 16, device="cuda"), torch.rand(32, device="cuda")
    b = torch.randn(200, 16, device="cuda")
    cu_seqlens = cu_seqlens_of([50] * 4).cuda()

    def step() -> tuple[Tensor, Tensor]:
        y = selective_scan(linear_scan(x, a, cu_seqlens), x, A, b, b, cu_seqlens=cu_seqlens)
        return y, torch.autograd.grad(y.square().sum(), x)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = [t.clone() for t in step()]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for t in captured:
        t.detach().fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, captured, strict=True))


# What the checks say is known without a GPU: shapes and types are all that they read.
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


@pytest.mark.parametrize("dtype", LINEAR_DTYPES)
def test_cuda_linear_scan_shapes_and_dtypes(dtype: torch.dtype) -> None:
    wide = dtype if dtype.is_complex else torch.float32
    h, state = fake_linear(dtype, wide)
    assert (h.shape, h.dtype, h.device.type) == ((7, 6), dtype, "cuda")
    assert (state.shape, state.dtype) == ((2, 6), wide)


@pytest.mark.parametrize("dtype", SELECTIVE_DTYPES)
def test_cuda_selective_scan_shapes_and_dtypes(dtype: torch.dtype) -> None:
    y, state = fake_selective(dtype)
    assert (y.shape, y.dtype, y.device.type) == ((70, 6), dtype, "cuda")
    assert (state.shape, state.dtype) == ((2, 6, 5), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_cuda_linear_scan_takes_no_double_precision(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="on cuda x must be float32 or float16 or bfloat16 or complex64"):
        fake_linear(dtype, dtype)


def test_cuda_linear_scan_keeps_coefficients_of_halves_wide() -> None:
    with pytest.raises(TypeError, match=r"a is torch.bfloat16; with x in torch.bfloat16 it must be"):
        fake_linear(torch.bfloat16, torch.bfloat16)


def test_cuda_selective_scan_takes_no_double_precision() -> None:
    with pytest.raises(TypeError, match="on cuda operands must be float32 or float16 or bfloat16"):
        fake_selective(torch.float64, torch.float64)


def test_cuda_selective_scan_keeps_A_wide() -> None:
    with pytest.raises(TypeError, match=r"A is torch.float16; with u in torch.float16 it must be"):
        fake_selective(torch.float16, torch.float16)
