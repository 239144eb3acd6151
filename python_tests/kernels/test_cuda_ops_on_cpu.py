"""The CUDA operators as PyTorch calls them, on CPU tensors: the SIMT host runs their kernels.

These tests cover the path from Python to the kernels' parameters and back into autograd, which test_simt.py
does not.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from python_tests.cases import (
    CASES,
    Case,
    CausalConv1dCase,
    GatedRelaCase,
    GatedRelaLastCase,
    LinearScanCase,
    SelectiveScanCase,
)
from python_tests.cases.case import REAL_DTYPES
from python_tests.cases.compare import differing
from python_tests.kernels.on_simt import check
from python_tests.support.results import LAYOUTS, UNEVEN
from recgrela.ops import (
    rotary_table,
)
from recgrela.ops.gated_rela import op as gated_rela_op
from tools.step_cost.counting import Counter
from tools.step_cost.launches import launches_of


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("head_dim", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_every_head_dim(simt: Any, dtype: torch.dtype, head_dim: int, causal: bool) -> None:
    heads = 3 if head_dim < 64 else 1
    check(
        simt,
        GatedRelaCase(lengths=(1, 33, 0, 18), dtype=dtype, heads=heads, head_dim=head_dim, causal=causal),
    )


@pytest.mark.parametrize("head_dim", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_the_last_rows(simt: Any, dtype: torch.dtype, head_dim: int) -> None:
    heads = 3 if head_dim < 64 else 1
    sizes = {"heads": heads, "head_dim": head_dim}
    check(simt, GatedRelaLastCase(lengths=(1, 33, 0, 18), dtype=dtype, **sizes))
    check(
        simt, GatedRelaLastCase(lengths=(40, 0, 2), dtype=dtype, offsets=torch.int32, rotary=False, **sizes)
    )


@pytest.mark.parametrize("rotary, gate, kernel_size", [(True, False, 5), (False, True, 0), (False, False, 1)])
def test_the_last_rows_with_parts_off(simt: Any, rotary: bool, gate: bool, kernel_size: int) -> None:
    # without a rotary table, the longest sequence is cut
    options = {"rotary": rotary, "gate": gate, "kernel_size": kernel_size}
    check(simt, GatedRelaLastCase(lengths=(600, 2, 1), heads=2, **options))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [(199,), UNEVEN, (600, 1)])
def test_lengths(simt: Any, lengths: tuple[int, ...], causal: bool) -> None:
    rotary = max(lengths) < 600
    check(simt, GatedRelaCase(lengths=lengths, heads=2, causal=causal, rotary=rotary, offsets=torch.int32))


@pytest.mark.parametrize(
    "rotary, gate, kernel_size", [(False, True, 4), (True, False, 3), (True, True, 0), (False, False, 1)]
)
def test_parts_off(simt: Any, rotary: bool, gate: bool, kernel_size: int) -> None:
    check(
        simt,
        GatedRelaCase(lengths=(30, 2, 1), heads=2, rotary=rotary, gate=gate, kernel_size=kernel_size),
    )


@pytest.mark.parametrize("lengths", [(1,), (0, 2, 40, 3)])
@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_state(simt: Any, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    check(simt, GatedRelaCase(lengths=lengths, dtype=dtype, heads=2, state=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", CASES, ids=lambda op: op.op)
def test_any_strides(simt: Any, op: type[Case], layout: str) -> None:
    for dtype in {*op.dtypes[::2], op.dtypes[-1]}:
        for case in op.variants((20, 3), dtype):
            check(simt, case, LAYOUTS[layout])


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)])
@pytest.mark.parametrize("op", CASES, ids=lambda op: op.op)
def test_empty_batches(simt: Any, op: type[Case], lengths: tuple[int, ...]) -> None:
    for state in (False, True):
        for case in op.variants(lengths, torch.float32, state=state):
            check(simt, case)


@pytest.mark.parametrize(
    "op",
    [GatedRelaCase, GatedRelaLastCase, CausalConv1dCase, LinearScanCase, SelectiveScanCase],
    ids=lambda op: op.op,
)
def test_offsets_of_empty_batches_are_checked(simt: Any, op: type[Case]) -> None:
    x = replace(op(lengths=()).operands(), cu_seqlens=torch.tensor([1]))
    with simt(), pytest.raises(RuntimeError, match="must start at 0"):
        op(lengths=()).results(x)


@pytest.mark.parametrize("lengths", [(20, 0, 3), (600, 1)])
def test_saved_sums_give_the_same_gradients(
    simt: Any, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second sequences are cut, so that the backward computes the sums again."""
    case = GatedRelaCase(lengths=lengths, heads=2, causal=False, rotary=max(lengths) < 600)
    x = case.operands()
    with simt():
        saved = case.results(x)
        with monkeypatch.context() as patch:  # undone before simt, which has set the same attribute
            patch.setattr(gated_rela_op, "SAVES_SUMS", set())
            assert not differing(case.results(x), saved)


@pytest.mark.parametrize("causal", [True, False])
def test_q_and_k_side_by_side(simt: Any, causal: bool) -> None:
    separate = GatedRelaCase(lengths=(20, 3), heads=2, causal=causal)
    x = separate.operands()
    q, k = x.inputs["q"].detach(), x.inputs["k"].detach()
    inputs = x.inputs | {"q": torch.cat([q, k], dim=1).requires_grad_()}
    del inputs["k"]
    with simt():
        expected = separate.results(x)
        got = replace(separate, joined=True).results(replace(x, inputs=inputs))
    expected["d_q"] = torch.cat([expected["d_q"], expected.pop("d_k")], dim=1)
    assert not differing(expected, got)


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 60, 200])
@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_causal_conv1d(simt: Any, dtype: torch.dtype, channels: int, kernel_size: int) -> None:
    sizes = {"channels": channels, "kernel_size": kernel_size}
    check(simt, CausalConv1dCase(lengths=UNEVEN, dtype=dtype, state=True, **sizes))


@pytest.mark.parametrize("per_step", [True, False])
@pytest.mark.parametrize("channels", [1, 60])
@pytest.mark.parametrize("dtype", LinearScanCase.dtypes)
def test_linear_scan(simt: Any, dtype: torch.dtype, channels: int, per_step: bool) -> None:
    case = LinearScanCase(
        lengths=(*UNEVEN, 500),
        dtype=dtype,
        channels=channels,
        per_step=per_step,
        state=True,
        offsets=torch.int32,
    )
    check(simt, case)


@pytest.mark.parametrize("num_states", [1, 16, 40])
@pytest.mark.parametrize("dtype", SelectiveScanCase.dtypes)
def test_selective_scan(simt: Any, dtype: torch.dtype, num_states: int) -> None:
    sizes = {"channels": 20, "num_states": num_states}
    case = SelectiveScanCase(lengths=(1, 70, 0, 3, 33), dtype=dtype, state=True, offsets=torch.int32, **sizes)
    check(simt, case)


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize(
    "state, without", [(True, ("D",)), (True, ("z",)), (True, ("delta_bias",)), (False, ("D", "z"))]
)
def test_selective_scan_with_parts_off(
    simt: Any, state: bool, without: tuple[str, ...], softplus: bool
) -> None:
    case = SelectiveScanCase(
        lengths=(40, 2), channels=9, num_states=5, state=state, without=without, softplus=softplus
    )
    check(simt, case)


def far_apart(x: Tensor) -> Tensor:
    """Returns a copy of two rows that are 2^31 elements apart, in memory of which a few pages exist."""
    stride, flags = 1 << 31, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, (stride + x.shape[1]) * x.element_size(), flags=flags)
    return torch.frombuffer(memory, dtype=x.dtype).as_strided(x.shape, (stride, 1)).copy_(x)


def test_selective_scan_of_rows_far_apart(simt: Any) -> None:
    ops = torch.ops.recgrela_simt
    u, delta, z, d_y = torch.randn(4, 2, 3).half().unbind()
    B, C = torch.randn(2, 2, 5).half().unbind()
    A, cu_seqlens = -torch.rand(3, 5), torch.tensor([0, 2])

    def run(u: Tensor, delta: Tensor, z: Tensor, d_y: Tensor, B: Tensor, C: Tensor) -> list[Tensor]:
        operands = (u, delta, A, B, C, None, z, None, cu_seqlens, None)
        y, _, checkpoints = ops.selective_scan(*operands, True, False, True)
        return [y, *ops.selective_scan_backward(d_y, None, *operands, checkpoints, True)]

    rows = (u, delta, z, d_y, B, C)
    for got, want in zip(run(*map(far_apart, rows)), run(*rows), strict=True):
        assert torch.equal(got, want)


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
        ({"taps": 5}, "kernel sizes up to 4, not 5"),
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
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = torch.randn(head, change.get("taps", 4), dtype=wide), torch.randn(head, dtype=wide)
    cu_seqlens = torch.tensor(change.get("offsets", [0, 7]))
    table = rotary_table(change.get("positions", 9), head, dtype=wide)
    absent = (None,) * 3
    args = (x, x, x, x, cu_seqlens, table, weight, bias, *absent, 1, True, 1e-6, False)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.recgrela_simt.gated_rela(*args)


class LaunchesOfOperators(TorchDispatchMode):
    """Collects the operators called, with their arguments and launches: kernels, and copies by PyTorch."""

    def __init__(self, library: Path) -> None:
        super().__init__()
        self.count = ctypes.CDLL(str(library)).recgrela_simt_launches
        self.count.restype = ctypes.c_int64
        self.found: dict[str, tuple[tuple[Any, ...], int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace != "recgrela_simt":
            return function(*args, **kwargs or {})
        before = self.count()
        with Counter("cpu") as counter:
            out = function.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args)
        launches = self.count() - before + sum(call.launches for call in counter.calls)
        self.found[function._schema.name.split("::")[1]] = args, launches
        return out


@pytest.mark.parametrize("op", CASES, ids=lambda op: op.op)
def test_launches_are_those_of_the_table(simt: Any, library: Path, op: type[Case]) -> None:
    dtypes = {torch.float32, torch.bfloat16} & set(op.dtypes)
    cases = [case for dtype in dtypes for case in op.variants((20,) * 40, dtype)]
    if op.op == "embedding":  # more rows have another sort
        cases += op.variants((20,) * 500, torch.float32)
    for case in cases:
        x = case.operands()
        with simt(), LaunchesOfOperators(library) as mode:
            case.results(x)
        assert op.op in mode.found
        counted = {name: number for name, (_, number) in mode.found.items()}
        assert counted == {name: launches_of(name, args) for name, (args, _) in mode.found.items()}
