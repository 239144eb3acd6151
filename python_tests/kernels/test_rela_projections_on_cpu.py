"""The CUDA operator rela_projections as PyTorch calls it, run on CPU tensors by the SIMT host."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from python_tests.cases import RelaProjectionsCase
from python_tests.kernels.on_simt import check, check_compiled
from python_tests.support.tensors import assert_close
from recgrela.ops import rela_projections

MODULE = sys.modules["recgrela.ops.rela_projections"]


@pytest.fixture(scope="module")
def fakes(library: Path) -> None:
    torch.library.register_fake("recgrela_simt::rela_projections", MODULE._fake)
    torch.library.register_fake("recgrela_simt::rela_projections_backward", MODULE._fake_backward)


@pytest.mark.parametrize("width", [32, 48, 64])
@pytest.mark.parametrize("dtype", RelaProjectionsCase.dtypes)
def test_rela_projections(simt: Any, dtype: torch.dtype, width: int) -> None:
    for gate, bias, outputs in ((True, True, None), (False, True, width), (True, False, 16)):
        sizes = {"width": width, "outputs": outputs, "gate": gate, "bias": bias}
        check(simt, RelaProjectionsCase(lengths=(1, 0, 130, 3), dtype=dtype, **sizes))


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (3,), (0, 1), (0, 2, 3), (1, 2)])
def test_rela_projections_with_outputs_unused(simt: Any, used: tuple[int, ...]) -> None:
    operands = list(RelaProjectionsCase(lengths=(70,)).operands().inputs.values())

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.detach().to(dtype).requires_grad_() for t in operands]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            outputs = rela_projections(*leaves, eps=1e-5)
        loss = sum(
            (outputs[i].to(dtype) * torch.linspace(-1, 2, outputs[i].shape[1], dtype=dtype)).sum()
            for i in used
        )
        more: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
        return list(torch.autograd.grad(loss, leaves, **more))

    expected = gradients(torch.float64)
    with simt():
        got = gradients(torch.float32)
    for i, pair in enumerate(zip(expected, got, strict=True)):
        assert_close(f"gradient {i}", *pair, 2e-2, scale=1e-6)


def in_bfloat16(*operands: Tensor, rows: Tensor | None = None) -> tuple[Tensor, ...]:
    with torch.autocast("cpu", torch.bfloat16):
        return rela_projections(*operands, eps=1e-5, rows=rows)


def residual_loss(x: Tensor, *parameters: Tensor) -> Tensor:
    """Uses the residual stream that the op passes on twice, and x itself beside it."""
    residual, v, gate, qk = in_bfloat16(x, *parameters)
    later = residual * 2 + residual.square() + x.sin()
    return later.sum() + sum(y.float().square().sum() for y in (v, gate, qk))


def test_the_gradient_of_the_residual_stream_is_added_in_the_backward(simt: Any) -> None:
    """With and without a gradient of x, traced, checkpointed, and with hooks."""
    x, *parameters = RelaProjectionsCase(lengths=(70,), dtype=torch.bfloat16).operands().inputs.values()
    leaves = (x, *parameters)
    with simt():
        plain = torch.autograd.grad(residual_loss(*leaves), leaves)
        passed = in_bfloat16(*leaves)[0]
        assert passed.grad_fn is not None and passed._base is x and "RelaProjections" in passed.grad_fn.name()
        with torch.no_grad():
            assert in_bfloat16(*leaves)[0] is x
        # Without a gradient of x, it is passed on as it is.
        frozen = x.detach()
        assert in_bfloat16(frozen, *parameters)[0] is frozen
        frozen_gradients = torch.autograd.grad(residual_loss(frozen, *parameters), parameters)
        assert all(torch.equal(a, b) for a, b in zip(plain[1:], frozen_gradients, strict=True))
        # x is the result of another operation, whose gradient a hook sees.
        seen: list[Tensor] = []
        inner = x * 1
        inner.register_hook(seen.append)
        (through,) = torch.autograd.grad(residual_loss(inner, *parameters), x)
        assert torch.equal(seen[0], through) and torch.equal(through, plain[0])
        recomputed = checkpoint(residual_loss, *leaves, use_reentrant=False)
        for expected, got in zip(plain, torch.autograd.grad(recomputed, leaves), strict=True):
            assert torch.equal(expected, got)
        with pytest.raises(RuntimeError, match="view"):
            in_bfloat16(*leaves)[0].add_(1)


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("others", [True, False])
def test_the_gradient_of_some_rows_is_added(simt: Any, used: bool, others: bool) -> None:
    leaves = tuple(RelaProjectionsCase(lengths=(70,), dtype=torch.bfloat16).operands().inputs.values())
    rows = torch.tensor([69, 4, 33])

    def gradients(apart: bool) -> tuple[Tensor | None, ...]:
        residual, *outputs = in_bfloat16(*leaves, rows=None if apart else rows)
        residual = leaves[0][rows] if apart else residual
        loss = sum(y.float().square().sum() for y in outputs) if others else torch.zeros(())
        loss = loss + residual.square().sum() if used else loss
        return torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else ()

    with simt():
        expected, got = gradients(apart=True), gradients(apart=False)
        assert in_bfloat16(*leaves, rows=rows)[0].grad_fn.name().startswith("RelaProjections")
    for a, c in zip(expected, got, strict=True):
        assert a is c is None or torch.equal(a, c)


def test_compiles_with_the_residual_stream(simt: Any, fakes: None) -> None:
    """A traced graph adds the gradient of the residual stream apart."""
    leaves = tuple(RelaProjectionsCase(lengths=(70,), dtype=torch.bfloat16).operands().inputs.values())
    check_compiled(simt, lambda *t: sum(y.float().square().sum() for y in in_bfloat16(*t)[1:]), leaves)
    with simt():
        expected = torch.autograd.grad(residual_loss(*leaves), leaves)
        compiled = torch.compile(residual_loss, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(*leaves), leaves)
    assert all(torch.equal(a, c) for a, c in zip(expected[1:], got[1:], strict=True))
    assert_close("d_x", expected[0], got[0], 1e-6)


def test_rela_projections_is_an_operator(simt: Any, fakes: None) -> None:
    case = RelaProjectionsCase(lengths=(20,), dtype=torch.bfloat16, outputs=32)
    x, *parameters = case.operands().inputs.values()
    operators, options = torch.ops.recgrela_simt, (1e-5, torch.bfloat16)
    bare = [*parameters[:3], None, None, None, parameters[6], None]
    for weights in (parameters, bare):
        with simt():
            torch.library.opcheck(operators.rela_projections.default, (x, *weights, *options))
    plain = [t.detach() for t in parameters]
    d_gate, d_qk = torch.randn(20, 64).bfloat16(), torch.randn(20, 32).bfloat16()
    operands = (x.detach(), torch.randn(20, 64).bfloat16(), *plain[:3])
    for args in (
        (x.detach(), d_gate, d_gate, d_qk, *operands, plain[4], plain[6], 1e-5),
        (None, None, None, d_qk, *operands, None, plain[6], 1e-5),
        (None, None, d_gate, None, *operands, plain[4], None, 1e-5),
    ):
        torch.library.opcheck(operators.rela_projections_backward.default, args)


def test_rela_projections_refuses(simt: Any) -> None:
    x, p, w = torch.randn(5, 32), torch.randn(32), torch.randn(32, 32)
    bf16 = torch.bfloat16
    wide, narrow = torch.randn(80, 80), torch.randn(24, 32)
    for args, message in [
        (
            (x, p, p, w, None, None, None, w, None, 1e-5, torch.float32),
            "take float16 and bfloat16, not Float",
        ),
        ((x, p, p, w, None, None, None, narrow, None, 1e-5, bf16), "in steps of 16, not 24"),
        ((x, p, p, w, None, None, None, w[:0], None, 1e-5, bf16), "qk_weight must have outputs"),
        ((wide, wide[0], wide[0], wide, None, None, None, wide, None, 1e-5, bf16), "widths of 32 to 64"),
        ((x, p, p, w, None, None, p, w, None, 1e-5, bf16), "gate_bias needs gate_weight"),
        ((x, p, p, w[:16], None, None, None, w, None, 1e-5, bf16), "in_weight must have the shape"),
        ((x.bfloat16(), p, p, w, None, None, None, w, None, 1e-5, bf16), "x must have the shape"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.recgrela_simt.rela_projections(*args)
    v = x.bfloat16()
    with pytest.raises(RuntimeError, match="d_gate and d_qk must be given with gate_weight"):
        torch.ops.recgrela_simt.rela_projections_backward(None, v, v, None, x, v, p, p, w, None, None, 1e-5)


def test_rela_projections_of_other_operands_is_a_composition(simt: Any) -> None:
    """float32, widths and numbers of outputs that the kernel does not take."""
    for sizes in ({}, {"dtype": torch.bfloat16, "width": 80}, {"dtype": torch.bfloat16, "outputs": 144}):
        x = RelaProjectionsCase(lengths=(20,), **sizes)
        with torch.autocast("cpu", torch.bfloat16, enabled="dtype" in sizes), simt():
            assert not MODULE.has_kernel(x.operands().inputs["x"], x.num_outputs)
        check(simt, x)


def test_gradients_of_any_layout(simt: Any) -> None:
    leaves = list(RelaProjectionsCase(lengths=(70,), width=32).operands().inputs.values())
    with simt():
        outputs = in_bfloat16(*leaves)
        for make in (
            lambda y: y.new_ones(()).expand(y.shape),
            lambda y: torch.linspace(-1, 2, y.numel()).to(y.dtype).view(y.shape[::-1]).t(),
        ):
            gradients = [make(y) for y in outputs]
            got, expected = (
                torch.autograd.grad(outputs, leaves, d, retain_graph=True)
                for d in (gradients, [d.contiguous() for d in gradients])
            )
            assert all(map(torch.equal, got, expected))
