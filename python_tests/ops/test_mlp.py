from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.support.tensors import assert_close, flops_of
from recgrela.ops import dropout, mlp, mlp_reference

NAMES = ("x", "w1", "b1", "w2", "b2")
FLOAT32 = NAMES[1:]
SEED = torch.tensor([123456789012345, 987654321098765])


def operands(rows: int, i: int, f: int, o: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = [(rows, i), (f, i), (f,), (o, f), (o,)]
    return [torch.randn(*shape, dtype=dtype).requires_grad_() for shape in shapes]


def example() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Operands and other arguments of a small call, for test_support.py."""
    return dict(zip(NAMES, operands(5, 8, 16, 8), strict=True)), {"dropout": 0.2, "seed": SEED}


def check(rows: int, i: int, f: int, o: int, **kw: Any) -> None:
    inputs = operands(rows, i, f, o)
    expected, got = mlp_reference(*inputs, **kw), mlp(*inputs, **kw)
    assert_close("y", expected, got, 1e-13)
    d_y = torch.randn_like(expected)
    grads = (torch.autograd.grad(y, inputs, d_y) for y in (expected, got))
    for name, a, b in zip(NAMES, *grads, strict=True):
        assert_close(name, a, b, 1e-12)


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 47, 96, 97, 200, 3300])
def test_equals_reference_at_any_number_of_rows(rows: int, isa: str) -> None:
    check(rows, 8, 32, 8, dropout=0.2, seed=SEED)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 5, 2), (16, 64, 16), (50, 70, 30), (64, 256, 64), (7, 9, 130)]
)
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_equals_reference_at_any_width(shape: tuple[int, int, int], rate: float, isa: str) -> None:
    check(100, *shape, dropout=rate, seed=SEED if rate else None)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (16, 64, 16), (50, 70, 30), (7, 9, 130)])
def test_few_rows_equal_the_reference_at_any_width(shape: tuple[int, int, int], isa: str) -> None:
    """Their products are computed without packing the weights."""
    for rows in (1, 3, 4):
        check(rows, *shape, dropout=0.2, seed=SEED)


@pytest.mark.parametrize("activation", ["none", "relu", "silu", "gelu"])
def test_activations(activation: str, isa: str) -> None:
    check(50, 6, 20, 10, activation=activation, dropout=0.1, seed=SEED)


def test_float32(isa: str) -> None:
    inputs = operands(300, 64, 256, 64)
    d_y = torch.randn(300, 64, dtype=torch.float64)
    single = [x.detach().float().requires_grad_() for x in inputs]
    expected, got = mlp_reference(*inputs), mlp(*single)
    assert_close("y", expected, got, 2e-6)
    grads = (torch.autograd.grad(expected, inputs, d_y), torch.autograd.grad(got, single, d_y.float()))
    for name, a, b in zip(NAMES, *grads, strict=True):
        assert_close(name, a, b, 4e-6)


def test_gelu_everywhere(isa: str) -> None:
    """The approximation in float32 and its slope, near 0 and far from it."""
    x = torch.linspace(-30, 30, 60_001).requires_grad_()
    one, zero = torch.ones(1, 1), torch.zeros(1)
    y = mlp(x[:, None], one, zero, one, zero)[:, 0]
    double = x.detach().double().requires_grad_()
    expected = torch.nn.functional.gelu(double)
    error = (y.double() - expected).abs()
    assert (error <= 2e-7 * expected.abs().clamp_min(1.0)).all()
    (slope,) = torch.autograd.grad(y.sum(), x)
    (expected_slope,) = torch.autograd.grad(expected.sum(), double)
    assert_close("slope", expected_slope, slope, 3e-7)


def test_autocast_computes_as_linear_layers_do() -> None:
    inputs = operands(20, 8, 16, 8, torch.float32)
    x, w1, b1, w2, b2 = inputs
    with torch.autocast("cpu", torch.bfloat16):
        y = mlp(*inputs)
        expected = F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)
    assert y.dtype == torch.bfloat16 and torch.equal(y, expected)
    d_y = torch.randn_like(y)
    grads = (torch.autograd.grad(out, inputs, d_y) for out in (expected, y))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        dropped = mlp(*inputs, dropout=0.5)
        torch.manual_seed(0)
        h = dropout(F.gelu(F.linear(x, w1, b1)), 0.5)
        assert torch.equal(dropped, dropout(F.linear(h, w2, b2), 0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_and_float32_parameters(dtype: torch.dtype) -> None:
    x, *parameters = operands(20, 8, 16, 8, torch.float32)
    rows = x.detach().to(dtype).requires_grad_()
    y = mlp(rows, *parameters, dropout=0.2, seed=SEED)
    expected = mlp_reference(rows.float(), *parameters, dropout=0.2, seed=SEED).to(dtype)
    assert y.dtype == dtype
    assert_close("y", expected, y, 1e-2)
    d_y = torch.randn_like(y)
    grads = torch.autograd.grad(y, [rows, *parameters], d_y)
    assert [g.dtype for g in grads] == [dtype, *[torch.float32] * 4]
    for name, a, b in zip(NAMES, torch.autograd.grad(expected, [rows, *parameters], d_y), grads, strict=True):
        assert_close(name, a, b, 1e-2)
    rounded = [p.detach().to(dtype).requires_grad_() for p in parameters]
    assert mlp(rows, *rounded).dtype == dtype
    assert {g.dtype for g in torch.autograd.grad(mlp(rows, *rounded), rounded, d_y)} == {dtype}
    with pytest.raises(TypeError, match=r"w1 is torch\.float64, x is torch"):
        mlp(rows, parameters[0].double(), *parameters[1:])


def test_autocast_casts_rows_alone_where_there_is_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast on CUDA, with the CPU kernel in the place of the CUDA kernel."""
    inputs = operands(20, 32, 16, 32, torch.float32)
    calls: list[tuple[Any, ...]] = []
    module = sys.modules["recgrela.ops.mlp"]
    monkeypatch.setattr(module, "autocast_enabled", lambda device_type: True)
    monkeypatch.setattr(module, "cast_for_autocast", lambda device_type, x: (x.bfloat16(),))
    monkeypatch.setattr(module.OP, "run", lambda like, *args, widths: calls.append((*args, widths)))
    mlp(*(x.to("meta") for x in inputs))
    x, *parameters, seed, activation, rate, widths = calls[0]
    assert x.dtype == torch.bfloat16 and {p.dtype for p in parameters} == {torch.float32}
    assert (seed, activation, rate, widths) == (None, "gelu", 0.0, (32, 32))


def test_nan_propagates() -> None:
    inputs = operands(3, 4, 8, 4)
    with torch.no_grad():
        inputs[0][1, 2] = float("nan")
    assert mlp(*inputs).isnan().all(dim=1).tolist() == [False, True, False]


def test_the_number_of_threads_does_not_matter() -> None:
    inputs = operands(1000, 16, 64, 16, torch.float32)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        y = mlp(*inputs, dropout=0.1, seed=SEED)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_gradcheck() -> None:
    inputs = operands(5, 3, 6, 2)
    assert torch.autograd.gradcheck(lambda *t: mlp(*t, dropout=0.3, seed=SEED), inputs)


def test_opcheck() -> None:
    inputs = operands(5, 8, 16, 8)
    torch.library.opcheck(torch.ops.recgrela.mlp.default, (*inputs, SEED, "gelu", 0.1))
    detached = [x.detach() for x in inputs]
    args = (torch.randn(5, 8, dtype=torch.float64), *detached, SEED, "gelu", 0.1)
    torch.library.opcheck(torch.ops.recgrela.mlp_backward.default, args)


def test_compiles_without_a_graph_break() -> None:
    inputs = operands(5, 8, 16, 8)

    def f(*values: Tensor) -> Tensor:
        return mlp(*values, dropout=0.1, seed=SEED).square().sum()

    expected = torch.autograd.grad(f(*inputs), inputs)
    got = torch.autograd.grad(torch.compile(f, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    for a, b in zip(expected, got, strict=True):
        assert_close("gradient", a, b, 1e-12)


def test_strides_do_not_matter() -> None:
    inputs = operands(20, 8, 16, 6)
    d_y = torch.randn(20, 6, dtype=torch.float64)
    expected = torch.autograd.grad(mlp(*inputs), inputs, d_y)
    spaced = [x.detach().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_() for x in inputs]
    slices = [torch.cat((x.detach(), x.detach()), -1)[..., : x.shape[-1]].requires_grad_() for x in inputs]
    for strided in (spaced, slices):
        got = torch.autograd.grad(mlp(*strided), strided, d_y.T.contiguous().T)
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_bad_input() -> None:
    x, w1, b1, w2, b2 = operands(5, 4, 8, 4)
    for args, message in [
        ((x[0], w1, b1, w2, b2), r"x must be \[T, I\]"),
        ((x, w1[:, :3], b1, w2, b2), r"w1 must be \[F, 4\]"),
        ((x, w1, b1[:3], w2, b2), r"b1 must be \[8\]"),
        ((x, w1, b1, w2[:, :2], b2), r"w2 must be \[O, 8\]"),
        ((x, w1, b1, w2, b2[:2]), r"b2 must be \[4\]"),
        ((x[:, :0], w1[:, :0], b1, w2, b2), "with widths above 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            mlp(*args)
    with pytest.raises(TypeError, match=r"w2 is torch\.float32"):
        mlp(x, w1, b1, w2.float(), b2)
    with pytest.raises(TypeError, match="x must be one of float16, bfloat16, float32, float64"):
        mlp(*(t.long() for t in (x, w1, b1, w2, b2)))
    with pytest.raises(ValueError, match="activation must be one of"):
        mlp(x, w1, b1, w2, b2, activation="tanh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rate must be at least 0"):
        mlp(x, w1, b1, w2, b2, dropout=1.0)
    with pytest.raises(ValueError, match="seed must have 2 elements"):
        mlp(x, w1, b1, w2, b2, dropout=0.1, seed=SEED[0])
    y = mlp(x, w1, b1, w2, b2)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(torch.autograd.grad(y.sum(), x, create_graph=True)[0].sum(), x)


def test_flops_are_those_of_two_layers() -> None:
    x, w1, b1, w2, b2 = operands(7, 16, 40, 16)
    plain = flops_of(lambda: F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2))
    assert flops_of(lambda: mlp(x, w1, b1, w2, b2)) == plain == 2 * 7 * 16 * 40 * 2
