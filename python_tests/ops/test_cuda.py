"""The ops on a GPU, against the CPU kernels in float64; and what can be known of them without one."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from python_tests.cases.rela import DTYPES, RATIOS, UNEVEN, Case
from python_tests.support.gpu import needs_gpu
from python_tests.support.tensors import assert_close, cu_seqlens_of
from recgrela.models import RecGRELAConfig, build
from recgrela.ops import causal_conv1d, gated_rela, rotary_table


def check(case: Case, **how: Any) -> None:
    case.check(case.results("cpu", torch.float64), case.results("cuda", case.dtype, **how))


@needs_gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("head", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_equals_cpu_at_every_head_width(dtype: torch.dtype, head: int, causal: bool) -> None:
    check(Case(UNEVEN, head, 3 if head < 64 else 1, causal=causal, dtype=dtype))


@needs_gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [[1], [2], [15], [16], [17], [199], [200], [257]])
def test_cuda_equals_cpu_at_odd_lengths(lengths: list[int], causal: bool) -> None:
    check(Case(lengths, causal=causal))


@needs_gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("head", [16, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_long_sequences_are_cut(dtype: torch.dtype, head: int, causal: bool) -> None:
    check(Case([3000, 1, 700], head, 1, causal=causal, dtype=dtype, rotary=False))


@needs_gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "rotary, gate, taps", [(False, True, 4), (True, False, 3), (True, True, 0), (False, False, 1)]
)
def test_cuda_with_parts_off(causal: bool, rotary: bool, gate: bool, taps: int) -> None:
    check(Case([70, 2, 1], causal=causal, rotary=rotary, gate=gate, taps=taps, offsets=torch.int32))


@needs_gpu
@pytest.mark.parametrize("lengths", [[1], [0, 2, 300, 3], [1200, 5]])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_state(lengths: list[int], dtype: torch.dtype) -> None:
    check(Case(lengths, causal=True, dtype=dtype, state=True))


@needs_gpu
def test_cuda_strides_and_rows_that_are_not_aligned() -> None:
    case = Case(UNEVEN, causal=True)
    for layout in (
        lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
        lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
        lambda x: torch.cat([x[..., :1], x], dim=-1)[..., 1:],
        lambda x: x.t().contiguous().t() if x.dim() == 2 else x,
    ):
        check(case, layout=layout)


@needs_gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_runs_are_bitwise_equal(dtype: torch.dtype, causal: bool) -> None:
    case = Case([200] * 64 + [900], 16, 4, causal=causal, dtype=dtype)
    first, second = (case.results("cuda", dtype) for _ in range(2))
    assert all(torch.equal(first[name], value) for name, value in second.items())


@needs_gpu
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_cuda_empty_batches(lengths: list[int]) -> None:
    got = Case(lengths, causal=True).results("cuda", torch.float32)
    assert got["y"].shape == (0, 32) and not got["d conv_weight"].any()


@needs_gpu
def test_cuda_more_than_2_to_the_31_elements() -> None:
    rows = 2**31 // 64 + 1000
    if torch.cuda.mem_get_info()[0] < 5 * rows * 128:
        pytest.skip("needs 25 GB of free GPU memory")
    v = torch.zeros(rows, 64, dtype=torch.bfloat16, device="cuda")
    v[-1000:] = torch.randn(1000, 64, dtype=torch.bfloat16, device="cuda")
    cu_seqlens = torch.tensor([0, rows - 1000, rows], device="cuda")
    y = gated_rela(v, v, v, None, cu_seqlens, num_heads=4, causal=True)
    tail = v[-1000:].clone()
    alone = gated_rela(
        tail, tail, tail, None, torch.tensor([0, 1000], device="cuda"), num_heads=4, causal=True
    )
    assert_close("the last rows", alone, y[-1000:], 2e-2)


@needs_gpu
def test_cuda_graph_capture() -> None:
    """Nothing in forward or backward waits for the device, or capture would fail."""
    x = torch.randn(4, 50, 64, device="cuda", requires_grad=True)
    weight, bias = torch.randn(64, 4, device="cuda"), torch.randn(64, device="cuda")
    cu_seqlens = cu_seqlens_of([50] * 4).cuda()
    table = rotary_table(50, 64, device="cuda")

    def step() -> tuple[Tensor, Tensor]:
        rows = x.flatten(0, 1)
        y = gated_rela(
            rows,
            rows,
            rows,
            rows,
            cu_seqlens,
            num_heads=4,
            causal=True,
            rotary=table,
            conv_weight=weight,
            conv_bias=bias,
        )
        y = causal_conv1d(y, weight, bias, cu_seqlens)
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


@needs_gpu
def test_cuda_autocast_keeps_angles_in_float32() -> None:
    case = Case([30, 5], causal=True)
    x = {name: t.detach().float().cuda().requires_grad_() for name, t in case.inputs.items()}
    rotary = rotary_table(40, 32, device="cuda")

    def call(x: dict[str, Tensor]) -> Tensor:
        x = dict(x)
        rows = [x.pop(name) for name in ("q", "k", "v", "g")]
        return gated_rela(*rows, case.cu_seqlens.cuda(), rotary=rotary, **x, **case.options)

    with torch.autocast("cuda", torch.bfloat16):
        y = call(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, call({name: t.bfloat16() for name, t in x.items()}))
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.float().sum(), list(x.values())))


@needs_gpu
@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 8, 60, 64, 200])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_causal_conv1d(dtype: torch.dtype, channels: int, width: int) -> None:
    lengths = UNEVEN
    shapes = ((sum(lengths), channels), (channels, width), (channels,), (len(lengths), width - 1, channels))
    inputs = [torch.randn(*shape).to(dtype).double() for shape in shapes]
    dy = torch.randn(shapes[0]).to(dtype).double()
    results = []
    for device, kind in (("cpu", torch.float64), ("cuda", dtype)):
        x, weight, bias, before = (t.to(device, kind).requires_grad_() for t in inputs)
        cu_seqlens = cu_seqlens_of(lengths).to(device)
        y, behind = causal_conv1d(x, weight, bias, cu_seqlens, "silu", before, return_final_values=True)
        loss = (y * dy.to(device, kind)).sum().double() + behind.double().square().sum()
        wanted = [x, weight, bias] + ([before] if width > 1 else [])
        results.append([y.detach(), behind.detach(), *torch.autograd.grad(loss, wanted)])
    for i, (expected, got) in enumerate(zip(*results, strict=True)):
        assert_close(f"result {i}", expected, got.cpu(), RATIOS[dtype], scale=0.3)


@needs_gpu
def test_cuda_model_equals_cpu() -> None:
    torch.manual_seed(0)
    model = build(RecGRELAConfig(mode="causal"), n_items=50, max_len=40).eval()
    items = torch.randint(1, 50, (3, 40))
    lengths = torch.tensor([40, 7, 1])
    expected = model.score(items, lengths)
    got = model.cuda().score(items.cuda(), lengths.cuda()).cpu()
    assert_close("scores", expected, got, 1e-4)


@needs_gpu
@pytest.mark.parametrize(
    "offsets, positions, message",
    [
        ([1, 7], 9, "cu_seqlens must start at 0"),
        ([0, 6], 9, "cu_seqlens must end at the number of rows"),
        ([0, 5, 4, 7], 9, "cu_seqlens must not decrease"),
        ([0, 7], 3, "a sequence is longer than the rotary table"),
    ],
)
def test_cuda_bad_offsets_are_device_assertions(offsets: list[int], positions: int, message: str) -> None:
    """In a process of its own: the assertion ends the process's use of the GPU."""
    script = (
        "import torch; from recgrela.ops import gated_rela, rotary_table\n"
        "x = torch.randn(7, 16, device='cuda')\n"
        f"table = rotary_table({positions}, 16, device='cuda')\n"
        f"offsets = torch.tensor({offsets}, device='cuda')\n"
        "gated_rela(x, x, x, x, offsets, num_heads=1, causal=True, rotary=table)\n"
        "torch.cuda.synchronize()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and message in done.stderr + done.stdout


# What the checks say is known without a GPU: shapes and types are all that they read.
def fake_call(head: int = 16, taps: int = 4, dtype: torch.dtype = torch.float32, **change: Any) -> Any:
    with FakeTensorMode():
        x = torch.empty(7, 2 * head, dtype=dtype, device="cuda")
        operands: dict[str, Any] = {
            "cu_seqlens": torch.empty(3, dtype=torch.int64, device="cuda"),
            "rotary": torch.empty(9, head, 2, device="cuda"),
            "conv_weight": torch.empty(2 * head, taps, dtype=dtype, device="cuda"),
            "conv_bias": torch.empty(2 * head, dtype=dtype, device="cuda"),
        }
        for name, how in change.items():
            operands[name] = how(operands[name]) if callable(how) else how
        return gated_rela(x, x, x, x, **({"num_heads": 2, "causal": True} | operands))


@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_shapes_and_dtypes(dtype: torch.dtype) -> None:
    y, state = fake_call(dtype=dtype, return_state=True)
    assert y.shape == (7, 32) and y.dtype == dtype and y.device.type == "cuda"
    assert state.sums.shape == (2, 2, 17, 16) and state.sums.dtype == torch.float32
    assert state.values.shape == (2, 3, 32) and state.values.dtype == dtype


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"head": 12}, ValueError, r"on cuda a head must have \(8, 16, 32, 64, 128\) channels, got 12"),
        ({"taps": 5}, ValueError, "on cuda conv_weight has at most 4 taps, got 5"),
        (
            {"dtype": torch.float64, "rotary": None},
            TypeError,
            "on cuda operands must be float32 or float16 or bfloat16",
        ),
        ({"dtype": torch.bfloat16, "rotary": lambda t: t.bfloat16()}, TypeError, "it must be torch.float32"),
        ({"rotary": lambda t: torch.empty(t.shape)}, ValueError, "rotary is on cpu, v on cuda"),
        ({"cu_seqlens": lambda t: torch.empty(3, dtype=torch.int64)}, ValueError, "cu_seqlens is on cpu"),
        ({"conv_weight": lambda t: t.half()}, TypeError, "conv_weight is torch.float16, v is torch.float32"),
    ],
)
def test_cuda_bad_operands(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fake_call(**change)


def test_cuda_bad_convolutions() -> None:
    with FakeTensorMode():
        x, cu_seqlens = torch.empty(7, 4, device="cuda"), torch.empty(3, dtype=torch.int64, device="cuda")
        with pytest.raises(ValueError, match="on cuda weight has at most 4 taps, got 5"):
            causal_conv1d(x, torch.empty(4, 5, device="cuda"), None, cu_seqlens)
        with pytest.raises(TypeError, match="on cuda operands must be"):
            causal_conv1d(x.double(), torch.empty(4, 4, device="cuda").double(), None, cu_seqlens)
