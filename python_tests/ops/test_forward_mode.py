"""Forward-mode derivatives: operators refuse tangents, which they would drop; compositions compute them.

The operators are those that the library declares and the ops those of the registry, so that none is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jvp, vmap

from python_tests.cases import CASES
from python_tests.ops.operator_calls import calls_of_operators, declared_operators
from python_tests.ops.step_case import EXAMPLES
from recgrela import ops
from recgrela.ops import OPS, dropout, dropout_reference
from recgrela.retrieval import ItemIndex

Function = Callable[[Tensor], Any]
REFUSED = r"^\w+: forward-mode derivatives .* are not implemented"
EVERY_OPERATOR = pytest.mark.parametrize("name", sorted(declared_operators()))
EVERY_OP = pytest.mark.parametrize("name", sorted(OPS))


def arguments(operator: torch._ops.OpOverload) -> tuple[Any, ...]:
    """Arguments of the types of the schema. A tangent is refused before shapes and values are checked."""
    made = {"Tensor": lambda: torch.randn(2, 2), "int": lambda: 1, "bool": lambda: False, "str": lambda: ""}
    made |= {"float": lambda: 0.5}
    types = (
        str(argument.type).replace("Optional[", "").rstrip("]") for argument in operator._schema.arguments
    )
    return tuple(made[kind]() for kind in types)


def of_each_operand(name: str) -> list[tuple[Function, Tensor]]:
    """The call of an operator as a function of one operand, for each tensor."""
    operator = getattr(torch.ops.recgrela, name).default
    args = arguments(operator)

    def of(i: int) -> Function:  # of copies, because operators in place change operands
        def call(x: Tensor) -> Any:
            own = [a.clone() if isinstance(a, Tensor) else a for a in args]
            return operator(*own[:i], x, *own[i + 1 :])

        return call

    return [(of(i), x) for i, x in enumerate(args) if isinstance(x, Tensor)]


def by_dual_level(
    call: Function, x: Tensor, context: Callable[[], AbstractContextManager[object]] = nullcontext
) -> Any:
    with forward_ad.dual_level(), context():
        return call(forward_ad.make_dual(x, torch.ones_like(x)))


def by_jvp_of_another(call: Function, x: Tensor) -> Any:
    """The outer level alone has a tangent."""
    one = torch.tensor(1.0)
    return jvp(lambda x: jvp(lambda y: (y, call(x)), (one,), (one,)), (x,), (x,))


TRANSFORMS: dict[str, Callable[[Function, Tensor], Any]] = {
    "forward_ad": by_dual_level,
    "forward_ad under no_grad": lambda call, x: by_dual_level(call, x, torch.no_grad),
    "jvp": lambda call, x: jvp(call, (x,), (x,)),
    "jvp of no_grad": lambda call, x: jvp(torch.no_grad()(call), (x,), (x,)),
    "jvp, outer level": by_jvp_of_another,
    "jacfwd": lambda call, x: jacfwd(call)(x),
    "vmap of jvp": lambda call, x: vmap(lambda x: jvp(call, (x,), (x,)))(torch.stack([x, x])),
}


@EVERY_OPERATOR
def test_every_operator_refuses_a_tangent_of_any_operand(name: str) -> None:
    operands = of_each_operand(name)
    assert operands
    for call, x in operands:
        for transform in TRANSFORMS.values():
            with pytest.raises(NotImplementedError, match=REFUSED):
                transform(call, x)


@EVERY_OPERATOR
def test_every_operator_refuses_forward_mode_of_vmap(name: str) -> None:
    call, x = of_each_operand(name)[0]
    both = torch.stack([x, x])
    refused = rf"{REFUSED}|torch.func.vmap does not map an operator in place"
    with pytest.raises(NotImplementedError, match=refused):
        jvp(vmap(call), (both,), (both,))


@pytest.mark.parametrize("name", ["causal_conv1d", "causal_conv1d_backward", "causal_conv1d_step", "top_k"])
def test_each_kind_of_operator_refuses_forward_mode_when_compiled(name: str) -> None:
    call, x = of_each_operand(name)[0]
    torch._dynamo.reset()
    with pytest.raises(NotImplementedError, match=REFUSED):
        torch.compile(lambda x: jvp(call, (x,), (x,)), backend="eager")(x)


def test_operators_run_in_forward_mode_of_something_else() -> None:
    """Operands without tangents are accepted."""
    two, one = torch.tensor(2.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    for operator, args in calls_of_operators().values():

        def first(factor: Tensor, operator: Any = operator, args: tuple[Any, ...] = args) -> Tensor:
            own = (a.detach().clone() if isinstance(a, Tensor) else a for a in args)
            found = operator(*own)
            return factor * (found if isinstance(found, Tensor) else found[0]).to(torch.complex128)

        value, tangent = jvp(first, (two,), (one,))
        assert torch.equal(tangent, first(one)) and torch.equal(value, first(two))


def op_calls(name: str) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    """A call of an op, or of its definition, as a function of its floating-point operands by name."""
    op = next((op for op in CASES if op.op == name), None)
    if op is not None:
        case = next(op.variants((4, 0, 3), torch.float64))
        x = case.operands()

        def call(inputs: dict[str, Tensor], definition: bool = False) -> Any:
            return case.call(replace(x, inputs=inputs), op.definition if definition else None)

        return call, {n: t.detach() for n, t in x.inputs.items()}
    if name in EXAMPLES:
        step = EXAMPLES[name](3)
        operands = step.rows | step.parameters | step.state
        floats = {n: t for n, t in operands.items() if t is not None and t.is_floating_point()}

        def call_step(inputs: dict[str, Tensor], definition: bool = False) -> Any:
            own = step.copy()
            rows, parameters, state = (
                {n: inputs[n].clone() if n in inputs else t for n, t in part.items()}
                for part in (own.rows, own.parameters, own.state)
            )
            changed = replace(own, rows=rows, parameters=parameters, state=state)
            return {"y": changed.call(getattr(ops, f"{name}_reference") if definition else None), **state}

        return call_step, floats
    assert name == "dropout"
    seed = torch.tensor(5)

    def drop(inputs: dict[str, Tensor], definition: bool = False) -> Any:
        return {"y": (dropout_reference if definition else dropout)(inputs["x"], 0.5, seed)}

    return drop, {"x": torch.randn(3, 20, dtype=torch.float64)}


@EVERY_OP
def test_an_op_computes_a_tangent_or_refuses_it(name: str) -> None:
    """Ops that run in plain PyTorch on this device compute tangents, which are those of the definition."""
    call, inputs = op_calls(name)
    for operand, x in inputs.items():
        tangent = torch.randn_like(x)

        def outputs(x: Tensor, definition: bool = False, operand: str = operand) -> Any:
            return call({**inputs, operand: x}, definition)

        try:
            _, found = jvp(outputs, (x,), (tangent,))
        except NotImplementedError as error:
            assert "forward-mode derivatives" in str(error)
            continue
        _, expected = jvp(lambda x: outputs(x, True), (x,), (tangent,))
        for output, t in expected.items():
            torch.testing.assert_close(found[output], t)


def test_hessian() -> None:
    """Forward mode of a gradient, whose operator has no gradient either."""
    call, inputs = op_calls("causal_conv1d")
    with pytest.raises(NotImplementedError, match=REFUSED):
        hessian(lambda x: call({**inputs, "x": x})["y"].square().sum())(inputs["x"])


def test_search_refuses_tangents_and_gradients() -> None:
    table = torch.randn(40, 8)
    index = ItemIndex(table, None, "int8")
    with pytest.raises(NotImplementedError, match=REFUSED):
        jvp(lambda q: index.search(q, 3)[1], (table[:2],), (table[:2],))
    operator, (queries, *others) = calls_of_operators()["top_k"]
    with pytest.raises(NotImplementedError, match=r"^top_k: it has no gradient"):
        grad(lambda q: operator(q, *others)[1].sum())(queries)
    leaf = queries.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match=r"^top_k: it has no gradient"):
        operator(leaf, *others)[1].sum().backward()
