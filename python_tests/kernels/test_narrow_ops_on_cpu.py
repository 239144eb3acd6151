"""The CUDA operators of narrow layers as PyTorch calls them, run on CPU tensors by the SIMT host."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.cases import AddNormCase, LinearCase, LinearCrossEntropyCase, MLPCase
from python_tests.cases.case import REAL_DTYPES
from python_tests.cases.compare import differing
from python_tests.kernels.on_simt import check, check_compiled
from python_tests.support.results import assert_results
from python_tests.support.tensors import assert_close
from recgrela.ops import (
    add_norm,
    dropout,
    dropout_reference,
    linear,
    linear_cross_entropy,
    linear_cross_entropy_reference,
    mlp,
)


@pytest.mark.parametrize("dtype", LinearCrossEntropyCase.dtypes)
def test_linear_cross_entropy(simt: Any, dtype: torch.dtype) -> None:
    for case in LinearCrossEntropyCase.small(dtype):
        if case.rows * case.n_items < 1e5:
            check(simt, case)


@pytest.mark.parametrize("dtype", LinearCrossEntropyCase.dtypes)
def test_linear_cross_entropy_of_some_gradients(simt: Any, dtype: torch.dtype) -> None:
    case = LinearCrossEntropyCase(lengths=(70,), dtype=dtype, n_items=40, bias=True)
    x = case.operands()
    with simt():
        every = case.results(x)
        for name in x.inputs:
            inputs = {n: t.detach().requires_grad_(n == name) for n, t in x.inputs.items()}
            loss = case.call(replace(x, inputs=inputs))["y"]
            (alone,) = torch.autograd.grad(loss, inputs[name], x.upstream["y"])
            assert torch.equal(alone, every[f"d_{name}"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_linear_cross_entropy_rounds_float32_rows_under_autocast(simt: Any, dtype: torch.dtype) -> None:
    case = LinearCrossEntropyCase(lengths=(70,), dtype=dtype, n_items=40, bias=True)
    x = case.operands()
    leaves = [x.inputs[name] for name in ("hidden", "weight", "bias")]
    wide = [leaf.detach().float().requires_grad_() for leaf in leaves]
    with simt():
        expected = linear_cross_entropy(*leaves[:2], x.constants["target"], leaves[2])
        with torch.autocast("cpu", dtype):
            got = linear_cross_entropy(*wide[:2], x.constants["target"], wide[2])
        grads, d_wide = torch.autograd.grad(expected, leaves), torch.autograd.grad(got, wide)
    assert torch.equal(got, expected)
    for a, b in zip(grads, d_wide, strict=True):
        assert b.dtype == torch.float32 and torch.equal(a, b.to(a.dtype))


def test_linear_cross_entropy_of_a_scaled_loss_of_float16_rows(simt: Any) -> None:
    """Before the scale of the loss, the gradients are as small as the smallest numbers of float16."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(512, 32).half().requires_grad_(), torch.randn(40, 32) * 1e-4
    target = torch.randint(40, (512,))
    with simt():
        loss = linear_cross_entropy(hidden, weight, target)
        (grad,) = torch.autograd.grad(loss * 2**12, hidden)
    double = hidden.detach().double().requires_grad_()
    expected = linear_cross_entropy_reference(double, weight.half().double(), target) * 2**12
    assert grad.dtype == torch.float16
    assert_close("d_hidden", torch.autograd.grad(expected, double)[0], grad, 1e-2)


@pytest.mark.parametrize("outputs2, bias", [(0, True), (0, False), (32, True), (240, False)])
@pytest.mark.parametrize("width, outputs", [(16, 16), (64, 64), (64, 192), (128, 80)])
@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_linear(simt: Any, dtype: torch.dtype, width: int, outputs: int, outputs2: int, bias: bool) -> None:
    sizes = {"width": width, "outputs": outputs, "outputs2": outputs2}
    check(simt, LinearCase(lengths=(130,), dtype=dtype, bias=bias, **sizes))


def test_linear_computes_the_gradients_that_are_needed(simt: Any) -> None:
    """Without the gradient of x, and with the gradient of one output alone."""
    x = LinearCase(lengths=(70,), outputs2=48).operands()
    parameters = [x.inputs[name] for name in ("weight", "bias", "weight2", "bias2")]
    rows = x.inputs["x"].detach()

    def gradients(dtype: torch.dtype, output: int) -> list[Tensor]:
        wide = [p.detach().to(dtype).requires_grad_() for p in parameters]
        y = linear(rows.to(dtype), *wide)[output]
        return list(torch.autograd.grad(y.square().sum(), wide, materialize_grads=True))

    for output in (0, 1):
        expected = gradients(torch.float64, output)
        with simt():
            got = gradients(torch.float32, output)
        for i, pair in enumerate(zip(expected, got, strict=True)):
            assert_close(f"gradient {i}", *pair, 1e-5)


def test_linear_with_too_many_outputs_in_plain_pytorch(simt: Any) -> None:
    case = LinearCase(lengths=(5,), outputs=272, outputs2=256)
    x = case.operands()
    expected = case.results(x)
    with simt():
        assert not differing(expected, case.results(x))


def test_linear_is_an_operator(simt: Any) -> None:
    """opcheck, and one graph of the public function."""
    x, w, b, w2, b2 = LinearCase(lengths=(20,), outputs2=32).operands().inputs.values()
    module = sys.modules["recgrela.ops.linear"]
    torch.library.register_fake("recgrela_simt::linear", module._fake)
    torch.library.register_fake("recgrela_simt::linear_backward", module._fake_backward)
    operators = torch.ops.recgrela_simt
    for args in ((x, w, b, w2, b2), (x, w, None, None, None)):
        with simt():
            torch.library.opcheck(operators.linear.default, args)
        plain = [None if t is None else t.detach() for t in args]
        d_y, d_y2 = operators.linear(*plain)
        for needs_d_x, d_passed in ((True, None), (True, x.detach()), (False, None)):
            gradient_args = (d_y, None if args[3] is None else d_y2, d_passed, *plain, needs_d_x)
            torch.library.opcheck(operators.linear_backward.default, gradient_args)

    def f(*args: Tensor) -> Tensor:
        return sum(y.square().sum() for y in linear(*args))

    leaves = (x, w, b, w2, b2)
    check_compiled(simt, f, leaves)
    with simt():  # traced, autograd adds the two gradients of x
        expected = torch.autograd.grad(passing_loss(leaves, True), leaves)
        compiled = torch.compile(passing_loss, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(leaves, True), leaves)
    for i, pair in enumerate(zip(expected, got, strict=True)):
        assert_close(f"gradient {i}", *pair, 1e-6)


def passing_loss(leaves: tuple[Tensor, ...], returned: bool, outputs: bool = True) -> Tensor:
    """Uses rows once more after the layers, and once beside them."""
    leaf, *parameters = leaves
    x = leaf * 2
    *ys, again = linear(x, *parameters, return_x=True) if returned else (*linear(x, *parameters), x)
    loss = again.square().sum() + x.sin().sum()
    return loss + sum(y.square().sum() for y in ys) if outputs else loss


@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_linear_adds_the_gradient_of_the_rows_that_it_returns(simt: Any, dtype: torch.dtype) -> None:
    leaves = tuple(LinearCase(lengths=(37,), dtype=dtype, outputs2=48).operands().inputs.values())
    seen: list[Tensor] = []
    with simt():
        expected = torch.autograd.grad(passing_loss(leaves, False), leaves)
        got = torch.autograd.grad(passing_loss(leaves, True), leaves)
        x = leaves[0].detach().requires_grad_()  # a leaf with a hook
        x.register_hook(seen.append)
        y, _, again = linear(x, *leaves[1:], return_x=True)
        (y.sum() + again.sum()).backward()
        assert len(seen) == 1 and torch.equal(seen[0], x.grad)  # the hook sees the whole gradient
        (alone,) = torch.autograd.grad(passing_loss(leaves, True, False), leaves[:1])
        plain, _ = linear(x, *leaves[1:])
        (d_plain,) = torch.autograd.grad(plain.sum(), x)
        (d_alone,) = torch.autograd.grad(passing_loss(leaves, False, False), leaves[:1])
    tolerance = 1e-6 if dtype == torch.float32 else 2e-3 if dtype == torch.float16 else 2e-2
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        assert_close(f"gradient {i}", a, b, tolerance)
    assert_close("gradient of a leaf", d_plain + 1, x.grad, tolerance)
    assert torch.equal(alone, d_alone)


def test_linear_refuses(simt: Any) -> None:
    x, w, b = torch.randn(5, 16), torch.randn(32, 16), torch.randn(32)
    for args, message in [
        ((x, w[:24], None, None, None), "multiples of 16 up to 512, not 24"),
        ((x, w, None, torch.randn(496, 16), None), "multiples of 16 up to 512, not 528"),
        ((x, w, None, None, b), "bias2 needs weight2"),
        ((x, w.double(), None, None, None), "weight must have the shape"),
        ((x.double(), w.double(), None, None, None), "take float32, float16 and bfloat16, not Double"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.recgrela_simt.linear(*args)
    with pytest.raises(RuntimeError, match="d_y2 must be given if weight2 is"):
        torch.ops.recgrela_simt.linear_backward(b.expand(5, 32), None, None, x, w, b, w, b, True)
    with pytest.raises(RuntimeError, match="d_passed needs d_x"):
        torch.ops.recgrela_simt.linear_backward(b.expand(5, 32), None, x, x, w, b, None, None, False)


@pytest.mark.parametrize("width", [32, 48, 64, 112, 256])
@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_add_norm(simt: Any, dtype: torch.dtype, post_norm: bool, width: int) -> None:
    for drop in (0.0, 0.3):
        sizes = {"width": width, "post_norm": post_norm, "drop": drop, "both": True}
        check(simt, AddNormCase(lengths=(1, 0, 40, 3), dtype=dtype, **sizes))


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_add_norm_with_parts_off(simt: Any, dtype: torch.dtype, post_norm: bool, branch: bool) -> None:
    """One output unused, and no branch."""
    operands = AddNormCase(lengths=(50,), dtype=dtype).operands().inputs.values()
    single = [t.detach().requires_grad_() for t in operands]
    double = [t.detach().double().requires_grad_() for t in operands]

    def results(inputs: list[Tensor], used: int) -> list[Tensor]:
        x, z, weight, bias = inputs
        outputs = add_norm(x, z if branch else None, weight, bias, eps=1e-5, post_norm=post_norm)
        upstream = torch.linspace(-1, 2, x.numel(), dtype=torch.float64).view(x.shape)
        d = upstream.to(outputs[used].dtype)
        more: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
        return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs[used], inputs, d, **more)]

    for used in (0, 1):
        expected = results(double, used)
        with simt():
            got = results(single, used)
        narrow = dtype if branch else torch.float32
        dtypes = [torch.float32, narrow, torch.float32, dtype, torch.float32, torch.float32]
        assert [t.dtype for t in got] == dtypes
        for i, pair in enumerate(zip(expected, got, strict=True)):
            assert_close(f"result {i}", *pair, 1e-5 if dtype == torch.float32 else 2e-2, scale=1.0)


def test_add_norm_is_an_operator(simt: Any) -> None:
    """opcheck, and one graph of the public function."""
    case = AddNormCase(lengths=(12,), dtype=torch.bfloat16).operands()
    x, z, weight, bias = case.inputs.values()
    sequence, seed = case.constants["sequence"], case.constants["seed"]
    module = sys.modules["recgrela.ops.add_norm"]
    torch.library.register_fake("recgrela_simt::add_norm", module._fake)
    torch.library.register_fake("recgrela_simt::add_norm_backward", module._fake_backward)
    operators, options = torch.ops.recgrela_simt, (1e-5, False, 0.2, 0.3, torch.bfloat16)
    with simt():
        torch.library.opcheck(operators.add_norm.default, (x, z, weight, bias, sequence, seed, *options))
    plain = [t.detach() for t in (x, weight)]
    d_normed = torch.randn(12, 64).bfloat16()
    args = (None, d_normed, plain[0], None, plain[1], sequence, seed, *options, True)
    torch.library.opcheck(operators.add_norm_backward.default, args)

    def f(*args: Tensor) -> Tensor:
        residual, normed = add_norm(*args, dropout=0.2, drop_path=0.3, sequence=sequence, seed=seed)
        return residual.square().sum() + normed.float().square().sum()

    leaves = (x, z, weight, bias)
    check_compiled(simt, f, leaves)


def test_add_norm_refuses(simt: Any) -> None:
    x, p, seed = torch.randn(5, 32), torch.randn(32), torch.tensor([1, 2])
    for args, message in [
        ((x[:, :24], None, p[:24], p[:24], None, None, 1e-5, False, 0.0, 0.0), "steps of 16, not 24"),
        ((x, x[:4], p, p, None, None, 1e-5, False, 0.0, 0.0), "z must have the shape"),
        ((x, x, p[:8], p, None, None, 1e-5, False, 0.0, 0.0), "weight must have the shape"),
        ((x, x, p, p, seed, seed, 1e-5, False, 0.0, 0.5), "sequence must have the shape"),
        ((x, x, p, p, None, None, 1e-5, False, 0.5, 0.0), "seed must be int64"),
        ((x, x, p, p, None, seed, 1e-5, False, 0.0, 1.0), "rate must be at least 0 and below 1"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.recgrela_simt.add_norm(*args, torch.float32)
    with pytest.raises(RuntimeError, match="takes the sum as x, and no z"):
        args = (None, x, x, x, p, None, None, 1e-5, False, 0.0, 0.0, torch.float32, True)
        torch.ops.recgrela_simt.add_norm_backward(*args)


@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_dropout_equals_its_definition(simt: Any, dtype: torch.dtype) -> None:
    seed = torch.tensor([12345])
    x = torch.randn(33, 21, dtype=dtype).requires_grad_()
    for layout in (lambda t: t, lambda t: t[1:, 1:], lambda t: t.T):
        rows = layout(x)
        with simt():
            y = dropout(rows, 0.3, seed)
            (d_x,) = torch.autograd.grad(y, rows, rows.detach())
        assert torch.equal(y, dropout_reference(rows.float(), 0.3, seed).to(dtype))
        assert torch.equal(y, d_x)


@pytest.mark.parametrize(
    "features, hidden, out, activation",
    [(64, 256, 64, "gelu"), (32, 37, 48, "silu"), (128, 200, 64, "relu"), (64, 300, 32, "none")],
)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_mlp(
    simt: Any, dtype: torch.dtype, dropout: float, features: int, hidden: int, out: int, activation: str
) -> None:
    sizes = {"features": features, "hidden": hidden, "out": out}
    check(simt, MLPCase(lengths=(130,), dtype=dtype, dropout=dropout, activation=activation, **sizes))


def test_mlp_of_wide_rows(simt: Any) -> None:
    case = MLPCase(lengths=(20,), dtype=torch.bfloat16, features=160, hidden=64, out=256, dropout=0.25)
    check(simt, case)
    wide = replace(case, dtype=torch.float32, dropout=0.0)  # in plain PyTorch
    x = wide.operands()
    with simt():
        got = wide.results(x)
    assert_results(wide, x, wide.on_cpu(x), got)


def test_mlp_is_an_operator(simt: Any) -> None:
    """opcheck, and one graph of the public function."""
    case = MLPCase(lengths=(20,), dtype=torch.bfloat16, features=32, hidden=48, out=64).operands()
    seed, leaves = case.constants["seed"], tuple(case.inputs.values())
    module = sys.modules["recgrela.ops.mlp"]
    torch.library.register_fake("recgrela_simt::mlp", module._fake)
    torch.library.register_fake("recgrela_simt::mlp_backward", module._fake_backward)
    operators, options = torch.ops.recgrela_simt, (seed, "gelu", 0.2)
    with simt():
        torch.library.opcheck(operators.mlp.default, (*leaves, *options))
    plain = [t.detach() for t in leaves]
    torch.library.opcheck(operators.mlp_backward.default, (case.upstream["y"], *plain, *options))

    def f(*args: Tensor) -> Tensor:
        return mlp(*args, dropout=0.2, seed=seed).float().square().sum()

    got = check_compiled(simt, f, leaves)
    assert [g.dtype for g in got] == [torch.bfloat16, *[torch.float32] * 4]


def test_mlp_refuses(simt: Any) -> None:
    x, w1, b1, w2, b2 = (
        torch.randn(5, 32),
        torch.randn(8, 32),
        torch.randn(8),
        torch.randn(32, 8),
        torch.randn(32),
    )
    operator = torch.ops.recgrela_simt.mlp
    for args, message in [
        ((x[:, :24], w1[:, :24], b1, w2, b2, None, "gelu", 0.0), "multiples of 16 up to 128, not 24"),
        ((x, w1, b1, torch.randn(144, 8), torch.randn(144), None, "gelu", 0.0), "up to 128, not 144"),
        ((x.half(), w1.half(), b1, w2, b2, None, "gelu", 0.0), "w1 must have the shape"),
        ((x, w1, b1, w2, b2, None, "tanh", 0.0), "must be none, relu, silu or gelu, not tanh"),
        ((x, w1, b1, w2, b2, None, "gelu", 0.5), "seed must be int64"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            operator(*args)
