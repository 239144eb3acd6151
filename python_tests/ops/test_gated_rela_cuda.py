"""gated_rela on a GPU, against the CPU kernels in float64, and its checks on fake CUDA tensors."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from python_tests.cases import GatedRelaCase
from python_tests.cases.case import REAL_DTYPES
from python_tests.support.gpu import needs_gpu
from python_tests.support.results import UNEVEN, check_on_cuda
from python_tests.support.tensors import assert_close
from recgrela.models import RecGRELAConfig, build
from recgrela.ops import gated_rela


@needs_gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("head_dim", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_cuda_equals_cpu_at_every_head_dim(dtype: torch.dtype, head_dim: int, causal: bool) -> None:
    heads = 3 if head_dim < 64 else 1
    check_on_cuda(GatedRelaCase(lengths=UNEVEN, dtype=dtype, heads=heads, head_dim=head_dim, causal=causal))


@needs_gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 199, 200, 257])
def test_cuda_equals_cpu_at_odd_lengths(length: int, causal: bool) -> None:
    check_on_cuda(GatedRelaCase(lengths=(length,), heads=2, causal=causal))


@needs_gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("head_dim", [16, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_long_sequences_are_cut(dtype: torch.dtype, head_dim: int, causal: bool) -> None:
    sizes = {"heads": 1, "head_dim": head_dim}
    check_on_cuda(GatedRelaCase(lengths=(3000, 1, 700), dtype=dtype, causal=causal, rotary=False, **sizes))


@needs_gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "rotary, gate, kernel_size", [(False, True, 4), (True, False, 3), (True, True, 0), (False, False, 1)]
)
def test_cuda_without_optional_operands(causal: bool, rotary: bool, gate: bool, kernel_size: int) -> None:
    parts = {"rotary": rotary, "gate": gate, "kernel_size": kernel_size}
    check_on_cuda(GatedRelaCase(lengths=(70, 2, 1), heads=2, causal=causal, offsets=torch.int32, **parts))


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
def test_cuda_autocast_keeps_angles_and_parameters_in_float32() -> None:
    case = GatedRelaCase(lengths=(30, 5), heads=2)
    x = case.operands("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        got = case.results(x)
    assert got["y"].dtype == torch.bfloat16
    # neither the angles nor the parameters are rounded
    inputs = {name: t if name in case.parameters else t.bfloat16() for name, t in x.inputs.items()}
    rounded = replace(x, inputs=inputs)
    assert torch.equal(got["y"], case.call(rounded)["y"])
    assert all(got[f"d_{name}"].dtype == torch.float32 for name in x.inputs)


@needs_gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("head, kernel_size", [(12, 4), (16, 5)])
def test_cuda_by_reference(head: int, kernel_size: int, causal: bool) -> None:
    sizes = {"heads": 2, "head_dim": head, "kernel_size": kernel_size}
    check_on_cuda(GatedRelaCase(lengths=(20, 0, 3), causal=causal, state=causal, **sizes))


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
    """Runs in a process of its own, because a device-side assertion ends the use of the GPU in it."""
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


def on_a_fake_gpu(head: int = 16, dtype: torch.dtype = torch.float32, **change: Any) -> Any:
    """Calls the op on fake CUDA tensors: checks, shapes and dtypes need no GPU."""
    with FakeTensorMode():
        x = torch.empty(7, 2 * head, dtype=dtype, device="cuda")
        operands: dict[str, Any] = {
            "cu_seqlens": torch.empty(3, dtype=torch.int64, device="cuda"),
            "rotary": torch.empty(9, head, 2, device="cuda"),
            "conv_weight": torch.empty(2 * head, 4, device="cuda"),
            "conv_bias": torch.empty(2 * head, device="cuda"),
        }
        for name, how in change.items():
            operands[name] = how(operands[name]) if callable(how) else how
        return gated_rela(x, x, x, x, **({"num_heads": 2, "causal": True} | operands))


@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_cuda_shapes_and_dtypes(dtype: torch.dtype) -> None:
    y, state = on_a_fake_gpu(dtype=dtype, return_state=True)
    assert y.shape == (7, 32) and y.dtype == dtype and y.device.type == "cuda"
    assert state.kv_state.shape == (2, 2, 17, 16) and state.kv_state.dtype == torch.float32
    assert state.history.shape == (2, 3, 32) and state.history.dtype == dtype


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"dtype": torch.bfloat16, "rotary": lambda t: t.bfloat16()}, TypeError, "it must be torch.float32"),
        ({"rotary": lambda t: torch.empty(t.shape)}, ValueError, "rotary is on cpu, v on cuda"),
        ({"cu_seqlens": lambda t: torch.empty(3, dtype=torch.int64)}, ValueError, "cu_seqlens is on cpu"),
        (
            {"conv_weight": lambda t: t.double()},
            TypeError,
            "with v in torch.float32 it must be torch.float32",
        ),
    ],
)
def test_cuda_bad_operands(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        on_a_fake_gpu(**change)
