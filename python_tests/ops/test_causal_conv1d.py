from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.cases import CausalConv1dCase
from python_tests.support.gpu import needs_gpu
from python_tests.support.results import UNEVEN as CUDA_LENGTHS
from python_tests.support.results import check_on_cuda
from python_tests.support.tensors import assert_close, cu_seqlens_of, flops_of
from recgrela.ops import causal_conv1d, causal_conv1d_reference

UNEVEN = [1, 257, 0, 3, 64, 2, 65]
FLOAT32 = ("weight", "bias")  # operands that stay float32 if the others have half precision


def operands(lengths: list[int], channels: int, kernel_size: int, *, bias: bool = True) -> list[Tensor]:
    shapes = [(sum(lengths), channels), (channels, kernel_size)] + ([(channels,)] if bias else [])
    return [torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in shapes]


def example() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Operands and other arguments of a small call, for test_support.py."""
    named = dict(zip(("x", "weight", "bias"), operands([3, 0, 4], 8, 4), strict=True))
    return named, {"cu_seqlens": cu_seqlens_of([3, 0, 4]), "return_final_history": True}


def call(op: Any, inputs: list[Tensor], cu_seqlens: Tensor, activation: Any) -> Tensor:
    x, weight, *bias = inputs
    return op(x, weight, bias[0] if bias else None, cu_seqlens, activation)


def check(
    lengths: list[int], channels: int, kernel_size: int, *, bias: bool = True, activation: Any = "silu"
) -> None:
    inputs, cu_seqlens = operands(lengths, channels, kernel_size, bias=bias), cu_seqlens_of(lengths)
    d_y = torch.randn_like(inputs[0])
    results = []
    for op in (causal_conv1d_reference, causal_conv1d):
        y = call(op, inputs, cu_seqlens, activation)
        results.append([y.detach(), *torch.autograd.grad(y, inputs, d_y)])
    for name, expected, got in zip(("y", "d_x", "d_weight", "d_bias"), *results, strict=False):
        assert_close(name, expected, got, 1e-12, scale=1.0)


@pytest.mark.parametrize("lengths", [[1], [2], [3], [4], [5], [199], [200], [257], UNEVEN])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4])
def test_equals_reference_at_odd_lengths(lengths: list[int], kernel_size: int, isa: str) -> None:
    check(lengths, 16, kernel_size)


@pytest.mark.parametrize("channels", [1, 3, 7, 12, 64, 100])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["silu", None])
def test_equals_reference_at_any_number_of_channels(channels: int, bias: bool, activation: Any) -> None:
    check([70, 3], channels, 4, bias=bias, activation=activation)


def test_a_kernel_longer_than_a_chunk() -> None:
    check([200, 5, 90], 4, 80)


def test_float32(isa: str) -> None:
    x, weight, bias = (t.detach() for t in operands(UNEVEN, 64, 4))
    cu_seqlens = cu_seqlens_of(UNEVEN)
    expected = causal_conv1d_reference(x, weight, bias, cu_seqlens)
    assert_close("y", expected, causal_conv1d(x.float(), weight.float(), bias.float(), cu_seqlens), 2e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(bias: bool) -> None:
    inputs, cu_seqlens = operands([5, 2, 0, 1], 3, 4, bias=bias), cu_seqlens_of([5, 2, 0, 1])

    def f(*values: Tensor) -> Tensor:
        return call(causal_conv1d, list(values), cu_seqlens, "silu")

    assert torch.autograd.gradcheck(f, inputs)


@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(bias: bool) -> None:
    x, weight, *rest = operands([3, 4], 8, 4, bias=bias)
    history = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True) if bias else None
    args = (x, weight, rest[0] if rest else None, cu_seqlens_of([3, 4]), history, True, bias)
    torch.library.opcheck(torch.ops.recgrela.causal_conv1d.default, args)
    detached = [t.detach() if isinstance(t, Tensor) else t for t in args[:-1]]
    grads = (torch.randn_like(x), None if history is None else torch.randn_like(history))
    torch.library.opcheck(torch.ops.recgrela.causal_conv1d_backward.default, (*grads, *detached))


def test_compiles_without_a_graph_break() -> None:
    inputs, cu_seqlens = operands([3, 4], 8, 4), cu_seqlens_of([3, 4])

    def f(*values: Tensor) -> Tensor:
        return call(causal_conv1d, list(values), cu_seqlens, "silu").square().sum()

    expected = torch.autograd.grad(f(*inputs), inputs)
    got = torch.autograd.grad(torch.compile(f, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    for a, b in zip(expected, got, strict=True):
        assert_close("gradient", a, b, 1e-12)


def test_strides_do_not_matter() -> None:
    inputs, cu_seqlens = operands([20, 4], 8, 4), cu_seqlens_of([20, 4])
    d_y = torch.randn_like(inputs[0])
    expected = torch.autograd.grad(call(causal_conv1d, inputs, cu_seqlens, "silu"), inputs, d_y)
    strided = [t.detach().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_() for t in inputs]
    y = call(causal_conv1d, strided, cu_seqlens, "silu")
    got = torch.autograd.grad(y, strided, d_y.t().contiguous().t())
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_dense_equals_packed() -> None:
    x, weight, bias = operands([6, 6], 8, 4)
    packed = causal_conv1d(x, weight, bias, cu_seqlens_of([6, 6]))
    assert torch.equal(causal_conv1d(x.view(2, 6, 8), weight, bias).flatten(0, 1), packed)


@pytest.mark.parametrize("kernel_size", [1, 2, 4, 6])
@pytest.mark.parametrize("lengths", [[1], [2, 70, 0, 3]])
def test_histories_equal_the_reference(lengths: list[int], kernel_size: int, isa: str) -> None:
    """Includes sequences shorter than the convolution, and all gradients."""
    inputs, cu_seqlens = operands(lengths, 8, kernel_size), cu_seqlens_of(lengths)
    history = torch.randn(len(lengths), kernel_size - 1, 8, dtype=torch.float64).requires_grad_()
    d_y, d_final_history = torch.randn_like(inputs[0]), torch.randn_like(history)
    results = []
    for op in (causal_conv1d_reference, causal_conv1d):
        y, final_history = op(*inputs, cu_seqlens, "silu", history, return_final_history=True)
        loss = (y * d_y).sum() + (final_history * d_final_history).sum()
        results.append([y.detach(), final_history.detach(), *torch.autograd.grad(loss, [*inputs, history])])
    for i, (expected, got) in enumerate(zip(*results, strict=True)):
        assert_close(f"result {i}", expected, got, 1e-12, scale=1.0)


def test_chunks_with_the_history_passed_on_equal_the_whole() -> None:
    (x, weight, bias), whole = operands([9], 4, 4), cu_seqlens_of([9])
    history, outs = None, []
    for chunk in x.split([1, 2, 6]):
        y, history = causal_conv1d(
            chunk, weight, bias, cu_seqlens_of([len(chunk)]), "silu", history, return_final_history=True
        )
        outs.append(y)
    assert_close("y", causal_conv1d(x, weight, bias, whole), torch.cat(outs), 1e-13)


def test_empty_batch() -> None:
    for lengths in ([], [0, 0]):
        inputs = operands(lengths, 4, 3)
        y = call(causal_conv1d, inputs, cu_seqlens_of(lengths), "silu")
        assert y.shape == (0, 4)
        d_x, *rest = torch.autograd.grad(y.sum(), inputs)
        assert d_x.shape == (0, 4) and not any(grad.any() for grad in rest)


def test_parameters_in_half_precision_are_converted() -> None:
    x, weight, bias = (t.detach().bfloat16() for t in operands([6, 3], 8, 4))
    cu_seqlens = cu_seqlens_of([6, 3])
    weight.requires_grad_()
    y = causal_conv1d(x, weight, bias, cu_seqlens)
    assert torch.equal(y, causal_conv1d(x, weight.float(), bias.float(), cu_seqlens))
    assert torch.autograd.grad(y.sum(), weight)[0].dtype == torch.bfloat16


def test_autocast_computes_in_float32() -> None:
    x, weight, bias = (t.detach().bfloat16() for t in operands([6, 3], 8, 4))
    cu_seqlens = cu_seqlens_of([6, 3])
    with torch.autocast("cpu", torch.bfloat16):
        y = causal_conv1d(x, weight.float(), bias, cu_seqlens)
    assert torch.equal(y, causal_conv1d(x.float(), weight.float(), bias.float(), cu_seqlens))


def test_second_derivatives_are_refused() -> None:
    inputs = operands([3], 2, 2)
    y = call(causal_conv1d, inputs, cu_seqlens_of([3]), "silu")
    (grad,) = torch.autograd.grad(y.sum(), inputs[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.randn(7)}, ValueError, r"with cu_seqlens x must be \[T, D\]"),
        ({"x": torch.randn(7, 4).double()}, TypeError, "weight is torch.float32; with x in torch.float64"),
        ({"weight": torch.randn(3, 4)}, ValueError, r"weight must be \[4, K\]"),
        ({"weight": torch.randn(4, 2).double()}, TypeError, "weight is torch.float64"),
        ({"bias": torch.randn(3)}, ValueError, r"bias must be \[4\]"),
        ({"bias": torch.randn(4, device="meta")}, ValueError, "bias is on meta"),
        ({"cu_seqlens": None}, ValueError, "need cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0, 8])}, RuntimeError, "end at 7"),
        ({"weight": torch.randn(4, 0)}, ValueError, "kernel size 0"),
        ({"cu_seqlens": torch.tensor([0, 2**63 - 1, -(2**63), 7])}, RuntimeError, "must not decrease"),
        ({"cu_seqlens": torch.tensor([0, 9, 7])}, RuntimeError, "must not decrease"),
        ({"activation": "gelu"}, ValueError, "activation must be"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    args: dict[str, Any] = {
        "x": torch.randn(7, 4),
        "weight": torch.randn(4, 3),
        "bias": torch.randn(4),
        "cu_seqlens": torch.tensor([0, 3, 7]),
    }
    with pytest.raises(error, match=message):
        causal_conv1d(**(args | change))


@needs_gpu
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5])  # 5 by the reference
@pytest.mark.parametrize("channels", [1, 8, 60, 64, 200])
@pytest.mark.parametrize("dtype", CausalConv1dCase.dtypes)
def test_cuda_equals_cpu(dtype: torch.dtype, channels: int, kernel_size: int) -> None:
    sizes = {"channels": channels, "kernel_size": kernel_size}
    check_on_cuda(CausalConv1dCase(lengths=CUDA_LENGTHS, dtype=dtype, state=True, **sizes))


def test_flops_are_those_of_a_convolution() -> None:
    x, weight = torch.randn(7, 16), torch.randn(16, 4)
    plain = flops_of(lambda: F.conv1d(F.pad(x.T[None], (3, 0)), weight[:, None], groups=16))
    assert flops_of(lambda: causal_conv1d(x, weight, None, torch.tensor([0, 7]))) == plain == 2 * 7 * 16 * 4
