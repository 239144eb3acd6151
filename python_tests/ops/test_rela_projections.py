from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.cases import RelaProjectionsCase
from python_tests.support.gpu import needs_gpu
from python_tests.support.tensors import assert_close
from recgrela.ops import rela_projections, rela_projections_reference

NAMES = (
    "x",
    "norm_weight",
    "norm_bias",
    "in_weight",
    "in_bias",
    "gate_weight",
    "gate_bias",
    "qk_weight",
    "qk_bias",
)
FLOAT32 = NAMES[1:]
HALF = (torch.float16, torch.bfloat16)
GATE = ("gate_weight", "gate_bias")
BIASES = ("in_bias", "gate_bias", "qk_bias")


def operands(rows: int, width: int, outputs: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    square = (width, width)
    shapes = [(rows, width), (width,), (width,), square, (width,), square, (width,), (outputs, width)]
    tensors = [torch.randn(*shape, dtype=dtype) + 0.5 for shape in [*shapes, (outputs,)]]
    return [x.requires_grad_() for x in tensors]


def example() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Operands and other arguments of a small call, for test_support.py."""
    return dict(zip(NAMES, operands(5, 8, 16), strict=True)), {"eps": 1e-5}


def without(absent: tuple[str, ...], inputs: list[Tensor]) -> list[Tensor | None]:
    return [None if name in absent else x for name, x in zip(NAMES, inputs, strict=True)]


def results(function: Any, inputs: list[Any], used: tuple[int, ...] = (0, 1, 2, 3)) -> list[Tensor]:
    """Outputs, and gradients of the `used` outputs; an unused operand has the gradient zero."""
    outputs = function(*inputs, eps=1e-5)
    generator = torch.Generator().manual_seed(1)
    draws = [None if y is None else torch.randn(y.shape, generator=generator) for y in outputs]
    pairs = [(outputs[i], draws[i].to(outputs[i].dtype)) for i in used if outputs[i] is not None]
    leaves = [x for x in inputs if x is not None]
    more: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    grads = torch.autograd.grad([y for y, _ in pairs], leaves, [d for _, d in pairs], **more)
    return [y.detach() for y in outputs if y is not None] + list(grads)


def assert_same(expected: list[Tensor], got: list[Tensor], ratio: float, scale: float = 1.0) -> None:
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        assert_close(f"result {i}", a, b, ratio, scale)


@pytest.mark.parametrize("absent", [(), GATE, BIASES, ("gate_bias",), ("gate_weight", *BIASES)])
@pytest.mark.parametrize("rows", [0, 1, 47, 200])
def test_equals_reference(rows: int, absent: tuple[str, ...]) -> None:
    inputs = without(absent, operands(rows, 12, 20))
    assert (rela_projections(*inputs)[2] is None) == ("gate_weight" in absent)
    assert_same(results(rela_projections_reference, inputs), results(rela_projections, inputs), 1e-12)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (3,), (0, 2), (1, 3)])
def test_any_output_may_be_unused(used: tuple[int, ...]) -> None:
    inputs = operands(30, 12, 20)
    expected, got = (results(f, inputs, used) for f in (rela_projections_reference, rela_projections))
    assert_same(expected, got, 1e-12)


@pytest.mark.parametrize("dtype", HALF)
def test_float32_parameters_of_half_precision_rows(dtype: torch.dtype) -> None:
    x, *parameters = operands(20, 8, 16, torch.float32)
    half = x.detach().to(dtype).requires_grad_()
    got = results(rela_projections, [half, *parameters])
    assert [t.dtype for t in got] == [dtype] * 5 + [torch.float32] * 8
    rounded = [p.detach().to(dtype).requires_grad_() for p in parameters]
    assert [t.dtype for t in results(rela_projections, [half, *rounded])] == [dtype] * 13


def test_autocast_computes_as_linear_layers_do() -> None:
    inputs = operands(20, 8, 16, torch.float32)
    x, weight, bias, w, b, w2, b2, w3, b3 = inputs
    with torch.autocast("cpu", torch.bfloat16):
        residual, *got = rela_projections(*inputs)
        u = F.layer_norm(x, (8,), weight, bias, 1e-12)
        v = F.linear(u, w, b)
        expected = v, F.linear(u, w2, b2), F.linear(v, w3, b3)
    assert residual.data_ptr() == x.data_ptr()
    for a, c in zip(expected, got, strict=True):
        assert c.dtype == torch.bfloat16
        assert_close("output", a, c, 1e-2)


def test_the_residual_stream_continues() -> None:
    """The gradient of x is that of all its uses: here, of the residual stream, and of x itself."""
    inputs = operands(7, 12, 20)
    x, *parameters = inputs

    def f(x: Tensor) -> Tensor:
        residual, v, gate, qk = rela_projections(x, *parameters)
        return residual.square().sum() + x.sin().sum() + v.sum() + gate.square().sum() + qk.cos().sum()

    (got,) = torch.autograd.grad(f(x), x)
    other = x.detach().requires_grad_()
    _, v, gate, qk = rela_projections_reference(other, *parameters)
    loss = other.square().sum() + other.sin().sum() + v.sum() + gate.square().sum() + qk.cos().sum()
    assert_close("d_x", torch.autograd.grad(loss, other)[0], got, 1e-12)


def test_some_rows_of_the_residual_stream() -> None:
    inputs, rows = operands(30, 12, 20), torch.tensor([28, 3, 17])

    def some(function: Any, *args: Tensor, eps: float) -> tuple[Tensor, ...]:
        return function(*args, eps=eps, rows=rows)

    assert rela_projections(*inputs, rows=rows)[0].shape == (3, 12)
    for used in ((0, 1, 2, 3), (0,), (1,)):
        expected, got = (
            results(partial(some, f), inputs, used) for f in (rela_projections_reference, rela_projections)
        )
        assert_same(expected, got, 1e-12)


def test_nan_propagates() -> None:
    inputs = operands(3, 4, 8)
    with torch.no_grad():
        inputs[0][1, 2] = float("nan")
    for y in rela_projections(*inputs)[1:]:
        assert y.isnan().all(dim=1).tolist() == [False, True, False]


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(rela_projections, operands(5, 4, 6))


def test_strides_do_not_matter() -> None:
    inputs = operands(20, 8, 16)
    expected = results(rela_projections, inputs)
    spaced = [x.detach().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_() for x in inputs]
    slices = [torch.cat((x.detach(), x.detach()), -1)[..., : x.shape[-1]].requires_grad_() for x in inputs]
    for strided in (spaced, slices):
        assert_same(expected, results(rela_projections, strided), 1e-12)


def test_bad_input() -> None:
    good = dict(zip(NAMES, operands(5, 4, 8), strict=True))
    for change, message in [
        ({"x": good["x"][0]}, r"x must be \[T, D\]"),
        ({"x": good["x"][:, :0]}, "with widths above 0"),
        ({"qk_weight": good["qk_bias"]}, r"qk_weight \[N, D\]"),
        ({"qk_weight": good["qk_weight"][:0]}, "with widths above 0"),
        ({"qk_weight": good["qk_weight"][:, :3]}, r"qk_weight must be \[8, 4\]"),
        ({"norm_weight": good["qk_bias"]}, r"norm_weight must be \[4\]"),
        ({"norm_bias": good["qk_bias"]}, r"norm_bias must be \[4\]"),
        ({"in_weight": good["qk_weight"]}, r"in_weight must be \[4, 4\]"),
        ({"in_bias": good["qk_bias"]}, r"in_bias must be \[4\]"),
        ({"gate_weight": good["qk_weight"]}, r"gate_weight must be \[4, 4\]"),
        ({"gate_bias": good["qk_bias"]}, r"gate_bias must be \[4\]"),
        ({"gate_weight": None}, "gate_bias needs gate_weight; pass both or neither"),
        ({"qk_bias": good["in_bias"]}, r"qk_bias must be \[8\]"),
        ({"in_weight": good["in_weight"].to("meta")}, "in_weight is on meta"),
    ]:
        with pytest.raises(ValueError, match=message):
            rela_projections(**good | change)
    with pytest.raises(TypeError, match=r"in_weight is torch\.float32, x is torch\.float64"):
        rela_projections(**good | {"in_weight": good["in_weight"].float()})
    with pytest.raises(ValueError, match=r"rows must be \[B\], got shape \(1, 1\)"):
        rela_projections(**good, rows=torch.tensor([[0]]))
    with pytest.raises(TypeError, match=r"rows is torch\.int32; .* it must be torch\.int64"):
        rela_projections(**good, rows=torch.tensor([0], dtype=torch.int32))
    with pytest.raises(TypeError, match="x must be one of float16, bfloat16, float32, float64"):
        rela_projections(**good | {"x": good["x"].long()})


def test_shapes_on_the_meta_device() -> None:
    inputs = [t.detach().to("meta").requires_grad_() for t in operands(20, 8, 24)]
    outputs = rela_projections(*inputs)
    assert [y.shape for y in outputs] == [(20, 8), (20, 8), (20, 8), (20, 24)]
    gradients = torch.autograd.grad(sum(y.sum() for y in outputs), inputs)
    assert [g.shape for g in gradients] == [x.shape for x in inputs]


def residual_loss(leaves: list[Tensor]) -> Tensor:
    """Uses the residual stream that the op passes on, and x beside it; under autocast if x is float32."""
    x = leaves[0]
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.float32):
        residual, *outputs = rela_projections(*leaves, eps=1e-5)
    return residual.square().sum() + x.sin().sum() + sum(y.double().square().sum() for y in outputs)


@needs_gpu
def test_the_residual_stream_on_cuda() -> None:
    case = RelaProjectionsCase(lengths=(500,), dtype=torch.bfloat16)
    leaves = list(case.operands().inputs.values())
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        own = [x.detach().to(device, dtype).requires_grad_() for x in leaves]
        results.append(torch.autograd.grad(residual_loss(own), own))
    for name, expected, got in zip(case.operands().inputs, *results, strict=True):
        assert_close(name, expected, got.cpu(), 5e-2)
