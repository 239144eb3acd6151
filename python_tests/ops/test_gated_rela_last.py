from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.support.gpu import needs_gpu
from python_tests.support.tensors import assert_close, cu_seqlens_of, flops_of
from recgrela.ops import gated_rela, gated_rela_last, gated_rela_last_reference, rotary_table

UNEVEN = [1, 257, 3, 64, 2, 65, 129]
FLOAT32 = ("conv_weight", "conv_bias")  # operands that stay float32 if the others have half precision


class Case:
    """Random operands; the rows are the last ones of the sequences, or middle ones."""

    def __init__(
        self,
        lengths: list[int],
        dim: int = 64,
        num_heads: int = 4,
        *,
        last: bool = True,
        rotary: bool = True,
        gate: bool = True,
        kernel_size: int = 4,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        def make(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=dtype).requires_grad_()

        batch, rows = len(lengths), sum(lengths)
        self.cu_seqlens = cu_seqlens_of(lengths)
        self.rows = self.cu_seqlens[1:] - 1
        if not last:
            self.rows = torch.tensor([0, *lengths]).cumsum(0)[:-1] + torch.tensor(lengths) // 2
        self.inputs = {"q": make(batch, dim), "k": make(rows, dim), "v": make(rows, dim)}
        if gate:
            self.inputs["g"] = make(batch, dim)
        if kernel_size:
            self.inputs |= {"conv_weight": make(dim, kernel_size), "conv_bias": make(dim)}
        self.options: dict[str, Any] = {"num_heads": num_heads}
        if rotary:
            self.options["rotary"] = rotary_table(max(lengths, default=0), dim, dtype=dtype)
        self.d_y = torch.randn(batch, dim, dtype=dtype)

    def call(self, op: Any = gated_rela_last) -> Tensor:
        x = dict(self.inputs)
        operands = (x.pop("q"), x.pop("k"), x.pop("v"), x.pop("g", None))
        return op(*operands, self.cu_seqlens, self.rows, **x, **self.options)

    def gradients(self, op: Any = gated_rela_last) -> dict[str, Tensor]:
        y = self.call(op)
        grads = torch.autograd.grad(y, list(self.inputs.values()), self.d_y)
        return {"y": y.detach(), **dict(zip(self.inputs, grads, strict=True))}

    def check(self, ratio: float) -> None:
        expected, got = self.gradients(gated_rela_last_reference), self.gradients()
        for name, value in expected.items():
            assert_close(name, value, got[name], ratio, scale=1.0)


def example() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Operands and other arguments of a small call, for test_support.py."""
    case = Case([3, 1, 4], 8, 2)
    return case.inputs, {"cu_seqlens": case.cu_seqlens, "rows": case.rows, **case.options}


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("lengths", [[1], [2], [63], [64], [65], [513, 1], UNEVEN])
def test_equals_reference(lengths: list[int], last: bool, isa: str) -> None:
    Case(lengths, last=last).check(1e-11)


@pytest.mark.parametrize("lengths", [[0], [0, 0], [0, 3, 0, 0, 70, 0]])
def test_empty_sequences(lengths: list[int], isa: str) -> None:
    """Their rows of the output and of the gradients are zeros, and `rows` has no meaning there."""
    case = Case(lengths)
    case.rows[case.cu_seqlens.diff() == 0] = -(2**40)
    if any(lengths):
        case.check(1e-11)
    for name, x in case.gradients().items():
        assert x.isfinite().all()
        if name in ("y", "q", "g"):
            assert not x[case.cu_seqlens.diff() == 0].any()


@pytest.mark.parametrize("dim, num_heads", [(64, 1), (64, 8), (2, 1), (12, 2), (40, 2)])
def test_every_head_dim(dim: int, num_heads: int, isa: str) -> None:
    Case([67, 5], dim, num_heads).check(1e-11)


@pytest.mark.parametrize("kernel_size", [0, 1, 4, 7])
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("gate", [True, False])
def test_without_optional_operands(rotary: bool, gate: bool, kernel_size: int) -> None:
    Case([70, 2, 1], 16, 2, rotary=rotary, gate=gate, kernel_size=kernel_size).check(1e-11)


@pytest.mark.parametrize("causal", [True, False])
def test_is_the_last_row_of_gated_rela(causal: bool) -> None:
    case = Case(UNEVEN)
    x = dict(case.inputs)
    q, g = (torch.randn(sum(UNEVEN), 64, dtype=torch.float64) for _ in range(2))
    q[case.rows], g[case.rows] = x.pop("q").detach(), x.pop("g").detach()
    y = gated_rela(q, x.pop("k"), x.pop("v"), g, case.cu_seqlens, causal=causal, **x, **case.options)
    assert_close("y", y[case.rows], case.call(), 1e-12)


def test_float32_and_far_below_zero(isa: str) -> None:
    """Far below 0, phi keeps its float32 precision, while elu(x) + 1 loses every digit."""
    case = Case(UNEVEN, dtype=torch.float32)
    with torch.no_grad():
        for name in ("q", "k"):
            case.inputs[name].sub_(20)
    case.options["eps"] = 1e-20
    got = case.gradients()
    for name in case.inputs:
        case.inputs[name] = case.inputs[name].detach().double().requires_grad_()
    case.options["rotary"], case.d_y = case.options["rotary"].double(), case.d_y.double()
    for name, value in case.gradients(gated_rela_last_reference).items():
        assert_close(name, value, got[name], 1e-4)


def test_gradcheck_and_opcheck() -> None:
    case = Case([5, 1, 3], 8, 2)
    names = list(case.inputs)

    def f(*values: Tensor) -> Tensor:
        case.inputs = dict(zip(names, values, strict=True))
        return case.call()

    assert torch.autograd.gradcheck(f, tuple(case.inputs.values()))
    q, k, v, g, weight, bias = case.inputs.values()
    offsets = (case.cu_seqlens, case.rows)
    op = torch.ops.recgrela.gated_rela_last.default
    args = (q, k, v, g, *offsets, case.options["rotary"], weight, bias, 2, 1e-6)
    torch.library.opcheck(op, args)
    torch.library.opcheck(op, (q, k, v, None, *offsets, None, None, None, 2, 1e-6))
    detached = [x.detach() if isinstance(x, Tensor) else x for x in args]
    backward = torch.ops.recgrela.gated_rela_last_backward.default
    torch.library.opcheck(backward, (case.d_y, op(*detached)[1], *detached))


def test_compiles_without_a_graph_break() -> None:
    case = Case([9, 2], 8, 2, dtype=torch.float32)
    compiled = torch.compile(lambda: case.call(), backend="aot_eager", fullgraph=True)
    assert_close("y", case.call(), compiled(), 1e-6)


def test_strides_of_operands_and_gradients_do_not_matter() -> None:
    case = Case([70, 3], 16, 2)
    plain = case.gradients()
    for name, x in case.inputs.items():
        if x.dim() == 2 and name != "conv_weight":
            spaced = torch.zeros(len(x), 3, 16, dtype=x.dtype)
            spaced[:, 1] = x.detach()
            case.inputs[name] = (
                spaced[:, 1] if name != "v" else x.detach().T.contiguous().T
            ).requires_grad_()
    case.d_y = case.d_y.T.contiguous().T
    for name, value in case.gradients().items():
        assert_close(name, plain[name], value, 1e-13)


def test_nan_spreads_no_further_than_its_sequence() -> None:
    """The convolution does not reach into the previous sequence either."""
    case = Case([5, 2, 4], 16, 2)
    with torch.no_grad():
        case.inputs["v"][4] = float("nan")
    y = case.call()
    assert y[0].isnan().any() and y[1:].isfinite().all()


def test_bitwise_the_same_for_any_number_of_threads() -> None:
    case, initial = Case([300] * 12), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(case.gradients())
    finally:
        torch.set_num_threads(initial)
    assert all(torch.equal(value, other[name]) for other in results for name, value in results[0].items())


def test_no_sequences() -> None:
    assert Case([], 8, 2).gradients()["y"].shape == (0, 8)


def test_autocast_computes_in_float32() -> None:
    case = Case([9, 2], 8, 2, dtype=torch.float32)
    expected = case.call()
    case.inputs["q"] = case.inputs["q"].detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = case.call()
    assert y.dtype == torch.float32
    assert_close("y", expected, y, 2e-2)


def test_a_result_without_a_gradient() -> None:
    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, y: Tensor) -> Tensor:
            return y.clone()

        @staticmethod
        def backward(ctx: Any, d_y: Tensor) -> None:
            return None

    case = Case([3, 2])
    Cut.apply(case.call()).sum().backward()
    assert all(x.grad is None for x in case.inputs.values())


def test_second_derivatives_are_refused() -> None:
    case = Case([3], 8, 2)
    (dk,) = torch.autograd.grad(case.call().sum(), case.inputs["k"], create_graph=True)
    with pytest.raises(NotImplementedError, match="_reference"):
        dk.sum().backward()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"q": torch.randn(3, 8)}, ValueError, r"q must be \[2, 8\], got shape \(3, 8\)"),
        ({"g": torch.randn(2, 4)}, ValueError, r"g must be \[2, 8\]"),
        ({"k": torch.randn(4, 8)}, ValueError, r"k must be \[5, 8\]"),
        ({"v": torch.randn(1, 5, 8)}, ValueError, r"v must be \[T, D\]"),
        ({"rows": torch.tensor([2])}, ValueError, r"rows must be \[2\]"),
        ({"rows": torch.tensor([2, 4], dtype=torch.int32)}, TypeError, "rows is torch.int32"),
        ({"num_heads": 3}, ValueError, "heads of an even width"),
        ({"rotary": rotary_table(2, 8)}, RuntimeError, "the rotary table has 2 positions"),
        ({"rotary": rotary_table(9, 4)}, ValueError, r"rotary must be \[P, 4, 2\]"),
        ({"conv_bias": None}, ValueError, "go together"),
        ({"cu_seqlens": torch.tensor([0, 3, 4])}, RuntimeError, "end at 5"),
        ({"rows": torch.tensor([2, 5])}, RuntimeError, r"rows\[1\] is 5, but sequence 1 has the rows 3 to 4"),
        ({"rows": torch.tensor([-1, 4])}, RuntimeError, r"rows\[0\] is -1"),
        ({"k": torch.randn(5, 8).double()}, TypeError, "k is torch.float64"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    operands: dict[str, Any] = {
        "q": torch.randn(2, 8),
        "k": torch.randn(5, 8),
        "v": torch.randn(5, 8),
        "g": None,
        "cu_seqlens": torch.tensor([0, 3, 5]),
        "rows": torch.tensor([2, 4]),
        "num_heads": 2,
        "rotary": None,
        "conv_weight": torch.randn(8, 2),
        "conv_bias": torch.randn(8),
    }
    with pytest.raises(error, match=message):
        gated_rela_last(**(operands | change))


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    case = Case(UNEVEN)
    expected = case.gradients()
    for name, x in case.inputs.items():
        case.inputs[name] = x.detach().to("cuda", dtype).requires_grad_()
    case.options["rotary"] = case.options["rotary"].to("cuda", torch.float32)
    case.cu_seqlens, case.rows, case.d_y = (
        case.cu_seqlens.cuda(),
        case.rows.cuda(),
        case.d_y.to("cuda", dtype),
    )
    for name, value in case.gradients().items():
        assert_close(name, expected[name], value.cpu(), 1e-4 if dtype == torch.float32 else 6e-2, scale=1.0)


def test_flops() -> None:
    case = Case([3, 4], 16, 2)
    rows = 6 * 7 * 16  # the query with each key, its weight with the value, the sum of keys
    assert flops_of(case.call) == rows + 2 * 16 * (2 + 2 * 4)
