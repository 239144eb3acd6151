"""Every op under torch.func's grad, vjp, vmap and jacrev. Second derivatives are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vjp, vmap

from python_tests.cases import CASES, Case
from python_tests.cases.case import Operands, Tensors
from python_tests.cases.compare import TOLERANCES, errors_of, fault_of
from python_tests.ops.step_case import EXAMPLES
from recgrela.ops import OPS, dropout

EVERY_OP = pytest.mark.parametrize("op", CASES, ids=lambda op: op.op)
# The others are made of these and of PyTorch's own on a CPU.
KERNELS = [op for op in CASES if "cpu" in OPS[op.op].kernels]
WITH_KERNEL = pytest.mark.parametrize("op", KERNELS, ids=lambda op: op.op)
TOLERANCE = TOLERANCES[torch.float64]
IN_PLACE = [name for name in EXAMPLES if name != "linear_scan_step"]  # which is plain PyTorch


class Call:
    """A call of an op as a function of its inputs alone."""

    def __init__(self, case: Case, x: Operands | None = None) -> None:
        self.case, self.x = case, x or case.operands()
        self.inputs = {name: t.detach() for name, t in self.x.inputs.items()}

    def outputs(self, inputs: Tensors, op: Any = None) -> Tensors:
        found = self.case.call(replace(self.x, inputs=inputs), op)
        return {name: found[name] for name in self.x.upstream}

    def loss(self, inputs: Tensors) -> Tensor:
        return sum((t * self.x.upstream[n]).real.sum() for n, t in self.outputs(inputs).items())

    def gradients(self) -> Tensors:
        """The gradients by autograd, as d_<input>."""
        return {n: d for n, d in self.case.results(self.x).items() if n.startswith("d_")}

    def stacked(self, count: int = 3) -> tuple[Tensors, list[Tensors]]:
        """Inputs with another dimension in front, and each of them."""
        each = [{n: t * (1 + i / 8) for n, t in self.inputs.items()} for i in range(count)]
        return {n: torch.stack([part[n] for part in each]) for n in self.inputs}, each


def calls_of(op: type[Case], *lengths: int) -> list[Call]:
    states = (False, True) if op.has_state else (False,)
    return [Call(case) for s in states for case in op.variants(lengths or (4, 0, 3), torch.float64, state=s)]


def check(expected: Tensors, got: Tensors) -> None:
    nonzero = {n: t for n, t in expected.items() if t.numel() and t.any()}
    assert nonzero and not fault_of(errors_of(nonzero, got), TOLERANCE)
    assert all(t.shape == got[n].shape for n, t in expected.items())


def named(found: Tensors) -> Tensors:
    return {f"d_{name}": t for name, t in found.items()}


def stack(parts: list[Tensors]) -> Tensors:
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


@EVERY_OP
def test_grad_equals_autograd(op: type[Case]) -> None:
    for call in calls_of(op):
        check(call.gradients(), named(grad(call.loss)(call.inputs)))


@EVERY_OP
def test_vjp_equals_autograd(op: type[Case]) -> None:
    for call in calls_of(op):
        outputs, backward = vjp(call.outputs, call.inputs)
        check({n: call.case.results(call.x)[n] for n in outputs}, outputs)
        (found,) = backward({n: t.to(outputs[n].dtype) for n, t in call.x.upstream.items()})
        check(call.gradients(), named(found))


@EVERY_OP
def test_vmap_equals_each_call(op: type[Case]) -> None:
    for call in calls_of(op):
        whole, each = call.stacked()
        check(stack([call.outputs(part) for part in each]), vmap(call.outputs)(whole))


@EVERY_OP
def test_vmap_of_one_operand_along_its_last_dimension(op: type[Case]) -> None:
    call = calls_of(op)[0]
    for name, t in call.inputs.items():
        each = [{**call.inputs, name: t * (1 + i / 8)} for i in range(2)]
        mapped = {**call.inputs, name: torch.stack([part[name] for part in each], -1)}
        in_dims = ({n: -1 if n == name else None for n in call.inputs},)
        check(stack([call.outputs(part) for part in each]), vmap(call.outputs, in_dims)(mapped))


@EVERY_OP
def test_gradients_of_each_example(op: type[Case]) -> None:
    """vmap of grad, and grad of vmap, which hides from the ops that their operands need gradients."""
    for call in calls_of(op):
        whole, each = call.stacked()
        expected = stack([grad(call.loss)(part) for part in each])
        check(expected, vmap(grad(call.loss))(whole))
        check(expected, grad(lambda inputs, call=call: vmap(call.loss)(inputs).sum())(whole))


@EVERY_OP
def test_jacrev_equals_that_of_the_definition(op: type[Case]) -> None:
    call = calls_of(op, 1, 2)[0]
    name, x = next(iter(call.inputs.items()))

    def y(changed: Tensor, function: Any = None) -> Tensor:
        found = call.outputs({**call.inputs, name: changed}, function)["y"]
        return torch.view_as_real(found) if found.is_complex() else found

    expected = torch.autograd.functional.jacobian(lambda changed: y(changed, op.definition), x)
    check({"jacobian": expected}, {"jacobian": jacrev(y)(x)})


@WITH_KERNEL
def test_second_derivatives_are_refused(op: type[Case]) -> None:
    call = calls_of(op)[0]

    def sum_of_gradients(inputs: Tensors) -> Tensor:
        return sum(t.sum() for t in grad(call.loss)(inputs).values())

    with pytest.raises(NotImplementedError, match=r"^\w+: second derivatives are not implemented"):
        grad(sum_of_gradients)(call.inputs)
    with pytest.raises(NotImplementedError, match=r"^\w+: second derivatives are not implemented"):
        jacrev(grad(call.loss))(call.inputs)


@WITH_KERNEL
def test_autograd_through_a_gradient_of_torch_func_is_refused(op: type[Case]) -> None:
    """The gradient must not look like a constant to the autograd around the transform."""
    call = calls_of(op)[0]
    leaves = {name: x.detach().requires_grad_() for name, x in call.inputs.items()}
    total = sum(t.square().sum() for t in grad(call.loss)(leaves).values())
    with pytest.raises(NotImplementedError, match=r"^\w+: second derivatives are not implemented"):
        total.backward()


def test_dropout() -> None:
    x, seed = torch.randn(3, 20, dtype=torch.float64), torch.tensor(5)
    each = torch.stack([dropout(row, 0.4, seed) for row in x])
    assert torch.equal(vmap(lambda row: dropout(row, 0.4, seed))(x), each)
    kept = torch.where(each == 0, each, each / x)
    assert torch.allclose(vmap(grad(lambda row: dropout(row, 0.4, seed).sum()))(x), kept)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda row: dropout(row, 0.4))(x)
    drawn = vmap(lambda row: dropout(row, 0.4), randomness="different")(torch.ones(2, 100))
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("name", IN_PLACE)
def test_vmap_of_a_step_is_refused(name: str) -> None:
    step = EXAMPLES[name](3)
    first = next(n for n, x in step.rows.items() if x is not None)

    def call(x: Tensor) -> Tensor:
        return replace(step, rows={**step.rows, first: x}).call()

    x = step.rows[first]
    assert x is not None
    with pytest.raises(
        NotImplementedError, match=f"^{name}: torch.func.vmap does not map an operator in place"
    ):
        vmap(call)(torch.stack([x, x]))


def test_vmap_of_nothing_is_refused() -> None:
    call = calls_of(CASES[0])[0]
    with pytest.raises(ValueError, match="dimension of size 0"):
        vmap(call.outputs)({n: t.new_empty(0, *t.shape) for n, t in call.inputs.items()})
