"""The CUDA operators as they are registered, on CPU tensors: the SIMT host runs their kernels.

What test_simt.py cannot see: the way from Python to the kernels' parameters, and back into autograd.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import recgrela.ops
from python_tests.cases.rela import DTYPES, RATIOS, UNEVEN, Case
from python_tests.cases.scans import LINEAR_DTYPES, SELECTIVE_DTYPES, LinearCase, ScanCase, SelectiveCase
from python_tests.support.simt import build_simt
from python_tests.support.tensors import assert_close, cu_seqlens_of
from recgrela.ops import causal_conv1d, checks, rotary_table
from recgrela.ops.gated_rela_last import _key_sums_backward_cuda, _key_sums_cuda

OPS = ("gated_rela", "causal_conv1d", "linear_scan", "selective_scan")
# recgrela.ops names the functions; these are their modules.
MODULES = {name: sys.modules[f"recgrela.ops.{name}"] for name in OPS}


@pytest.fixture(scope="module")
def library() -> None:
    build = build_simt("recgrela_simt_ops", RECGRELA_TORCH=Path(torch.__file__).parent, RECGRELA_TESTS="ON")
    torch.ops.load_library(build / "librecgrela_simt_ops.so")
    for name, module in MODULES.items():
        op = f"recgrela_simt::{name}"
        torch.library.register_autograd(op, module._backward, setup_context=module._setup)


@pytest.fixture
def simt(library: None, poisoned_memory: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Inside `with simt():` recgrela.ops calls the CUDA operators, in the dtypes that they take."""

    def switch() -> pytest.MonkeyPatch:
        patch = pytest.MonkeyPatch()
        for name in OPS:
            for op in (name, f"{name}_backward"):
                patch.setattr(torch.ops.recgrela, op, getattr(torch.ops.recgrela_simt, op))
        for dtypes in (checks.KERNEL_DTYPES, MODULES["linear_scan"].SCAN_DTYPES):
            patch.setitem(dtypes, "cpu", dtypes["cuda"])
        return patch

    class Simt:
        def __enter__(self) -> None:
            self.patch = switch()

        def __exit__(self, *_: object) -> None:
            self.patch.undo()

    yield Simt


def check(simt: Any, case: Case, **how: Any) -> None:
    expected = case.results("cpu", torch.float64)
    with simt():
        got = case.results("cpu", case.dtype, **how)
    case.check(expected, got)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("head", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_head_width(simt: Any, dtype: torch.dtype, head: int, causal: bool) -> None:
    check(simt, Case([1, 33, 0, 18], head, 3 if head < 64 else 1, causal=causal, dtype=dtype))


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_key_sums(simt: Any, dtype: torch.dtype, rotary: bool) -> None:
    """Their form on CUDA, which takes the state of gated_rela, with k in the place of q too."""
    lengths, heads = [1, 33, 18], 2
    k, v = (torch.randn(52, 32).to(dtype) for _ in range(2))
    table = rotary_table(33, 32) if rotary else None
    cu_seqlens, d_sums = cu_seqlens_of(lengths), torch.randn(3, heads, 17, 16)
    wide = (k.double(), v.double(), cu_seqlens, None if table is None else table.double(), heads)
    sums = torch.ops.recgrela.key_sums(*wide)
    grads = torch.ops.recgrela.key_sums_backward(d_sums.double(), *wide)
    with simt():
        args = (k, v, cu_seqlens, table, heads)
        assert_close("sums", sums, _key_sums_cuda(*args), 1e-2 if dtype == torch.bfloat16 else 2e-3)
        for name, a, b in zip(("dk", "dv"), grads, _key_sums_backward_cuda(d_sums, *args), strict=True):
            assert b.dtype == dtype
            assert_close(name, a, b, 4e-2 if dtype == torch.bfloat16 else 5e-3)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [[199], UNEVEN, [600, 1]])
def test_lengths(simt: Any, lengths: list[int], causal: bool) -> None:
    check(simt, Case(lengths, causal=causal, rotary=max(lengths) < 600, offsets=torch.int32))


@pytest.mark.parametrize(
    "rotary, gate, taps", [(False, True, 4), (True, False, 3), (True, True, 0), (False, False, 1)]
)
def test_parts_off(simt: Any, rotary: bool, gate: bool, taps: int) -> None:
    check(simt, Case([30, 2, 1], causal=True, rotary=rotary, gate=gate, taps=taps))


@pytest.mark.parametrize("lengths", [[1], [0, 2, 40, 3]])
@pytest.mark.parametrize("dtype", DTYPES)
def test_state(simt: Any, lengths: list[int], dtype: torch.dtype) -> None:
    check(simt, Case(lengths, causal=True, dtype=dtype, state=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_and_rows_that_are_not_aligned(simt: Any, dtype: torch.dtype) -> None:
    case = Case([20, 3], causal=True, dtype=dtype)
    for layout in (
        lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
        lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
        lambda x: torch.cat([x[..., :1], x], dim=-1)[..., 1:],
        lambda x: x.t().contiguous().t() if x.dim() == 2 else x,
    ):
        check(simt, case, layout=layout)


@pytest.mark.parametrize("causal", [True, False])
def test_q_and_k_side_by_side(simt: Any, causal: bool) -> None:
    case = Case([20, 3], causal=causal)
    x = {name: t.detach().float() for name, t in case.inputs.items()}
    dense = [x.pop(name) for name in ("q", "k", "v", "g")]
    table = rotary_table(20, 32)
    with simt():
        results = []
        for together in (False, True):
            leaves = [t.clone().requires_grad_() for t in dense]
            q, k = (torch.cat(leaves[:2], dim=1), None) if together else leaves[:2]
            y = recgrela.ops.gated_rela(q, k, *leaves[2:], case.cu_seqlens, rotary=table, **x, **case.options)
            results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_empty_batches(simt: Any, lengths: list[int]) -> None:
    with simt():
        got = Case(lengths, causal=True).results("cpu", torch.float32)
    assert got["y"].shape == (0, 32) and not got["d conv_weight"].any()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 60, 200])
@pytest.mark.parametrize("dtype", DTYPES)
def test_causal_conv1d(simt: Any, dtype: torch.dtype, channels: int, width: int) -> None:
    shapes = ((sum(UNEVEN), channels), (channels, width), (channels,), (len(UNEVEN), width - 1, channels))
    inputs = [torch.randn(*shape).to(dtype).double() for shape in shapes]
    dy, cu_seqlens = torch.randn(shapes[0]).to(dtype).double(), cu_seqlens_of(UNEVEN)

    def results(kind: torch.dtype) -> list[Tensor]:
        x, weight, bias, before = (t.to(kind).requires_grad_() for t in inputs)
        y, behind = causal_conv1d(x, weight, bias, cu_seqlens, "silu", before, return_final_values=True)
        loss = (y * dy.to(kind)).sum().double() + behind.double().square().sum()
        wanted = [x, weight, bias] + ([before] if width > 1 else [])
        return [y.detach(), behind.detach(), *torch.autograd.grad(loss, wanted)]

    expected = results(torch.float64)
    with simt():
        got = results(dtype)
    for i, pair in enumerate(zip(expected, got, strict=True)):
        assert_close(f"result {i}", *pair, RATIOS[dtype], scale=0.3)


def check_scan(simt: Any, case: ScanCase, **how: Any) -> None:
    expected = case.results("cpu", wide=True)
    with simt():
        got = case.results("cpu", **how)
    case.check(expected, got)


@pytest.mark.parametrize("per_step", [True, False])
@pytest.mark.parametrize("channels", [1, 60])
@pytest.mark.parametrize("dtype", LINEAR_DTYPES)
def test_linear_scan(simt: Any, dtype: torch.dtype, channels: int, per_step: bool) -> None:
    check_scan(simt, LinearCase([*UNEVEN, 500], channels, dtype, per_step=per_step, offsets=torch.int32))


@pytest.mark.parametrize("states", [1, 16, 40])
@pytest.mark.parametrize("dtype", SELECTIVE_DTYPES)
def test_selective_scan(simt: Any, dtype: torch.dtype, states: int) -> None:
    check_scan(simt, SelectiveCase([1, 70, 0, 3, 33], 20, states, dtype, offsets=torch.int32))


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("without", [("D",), ("z",), ("delta_bias",), ("initial_state", "D", "z")])
def test_selective_scan_with_parts_off(simt: Any, without: tuple[str, ...], softplus: bool) -> None:
    check_scan(simt, SelectiveCase([40, 2], 9, 5, torch.float32, without=without, softplus=softplus))


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
        lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
        lambda x: torch.cat([x[..., :1], x], dim=-1)[..., 1:],
    ],
)
def test_scans_of_strided_and_unaligned_rows(simt: Any, layout: Any) -> None:
    check_scan(simt, LinearCase([20, 3], 8, torch.bfloat16, per_step=True), layout=layout)
    check_scan(simt, LinearCase([20, 3], 8, torch.complex64, per_step=False), layout=layout)
    check_scan(simt, SelectiveCase([20, 3], 8, 16, torch.float16), layout=layout)


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_scans_of_empty_batches(simt: Any, lengths: list[int]) -> None:
    check_scan(simt, LinearCase(lengths, 8, torch.float32, per_step=False))
    check_scan(simt, SelectiveCase(lengths, 8, 16, torch.float32))


def test_bare_scans_refuse(simt: Any) -> None:
    x, cu_seqlens = torch.randn(7, 4, dtype=torch.complex128), torch.tensor([0, 7])
    with pytest.raises(RuntimeError, match="take complex64, not complex128"):
        torch.ops.recgrela_simt.linear_scan(x, x[0], cu_seqlens, None, False)
    x, a = torch.randn(7, 4), torch.rand(4)
    with pytest.raises(RuntimeError, match="must end at the number of rows"):
        torch.ops.recgrela_simt.linear_scan(x, a, torch.tensor([0, 6]), None, False)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"head": 12}, "heads of 8, 16, 32, 64 or 128 channels, not 12"),
        ({"taps": 5}, "up to 4 taps, not 5"),
        ({"dtype": torch.float64}, "take float32, float16 and bfloat16, not Double"),
        ({"offsets": [1, 7]}, "must start at 0"),
        ({"offsets": [0, 6]}, "must end at the number of rows"),
        ({"offsets": [0, 5, 4, 7]}, "must not decrease"),
        ({"positions": 3}, "longer than the rotary table"),
    ],
)
def test_bare_ops_refuse(simt: Any, change: dict[str, Any], message: str) -> None:
    """What the functions in Python check before, or cannot."""
    head, dtype = change.get("head", 16), change.get("dtype", torch.float32)
    x = torch.randn(7, head, dtype=dtype)
    weight, bias = torch.randn(head, change.get("taps", 4), dtype=dtype), torch.randn(head, dtype=dtype)
    cu_seqlens = torch.tensor(change.get("offsets", [0, 7]))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    table = rotary_table(change.get("positions", 9), head, dtype=wide)
    absent = (None,) * 3
    args = (x, x, x, x, cu_seqlens, table, weight, bias, *absent, 1, True, 1e-6, False)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.recgrela_simt.gated_rela(*args)
