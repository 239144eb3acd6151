from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.ops.gated_rela_case import RelaOperands
from python_tests.support.tensors import assert_close, cu_seqlens_of
from recgrela.ops import RelaState, gated_rela, gated_rela_reference


@pytest.mark.parametrize("kernel_size", [0, 1, 4])
@pytest.mark.parametrize("lengths", [[1], [2, 70, 0, 3], [130, 64]])
def test_state_equals_reference(lengths: list[int], kernel_size: int, isa: str) -> None:
    """Compares outputs, final state and every gradient, including that of the initial state."""
    case = RelaOperands(lengths, 16, 2, causal=True, kernel_size=kernel_size)
    state = case.state(requires_grad=True)
    case.options |= {"initial_state": state, "return_state": True}
    wanted = [*case.inputs.values(), state.kv_state] + ([state.history] if kernel_size > 1 else [])
    results = []
    for op in (gated_rela_reference, gated_rela):
        y, final = case.call(op)
        torch.manual_seed(1)
        loss = (y * case.d_y).sum() + sum((x * torch.randn_like(x)).sum() for x in final[:2])
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        results.append([y.detach(), *final, *grads])
    for i, (expected, got) in enumerate(zip(*results, strict=True)):
        assert_close(f"result {i}", expected, got, 1e-11, scale=1.0)


@pytest.mark.parametrize("chunks", [[1, 1, 1, 1, 1], [2, 0, 3, 75], [64, 16]])
def test_chunks_with_the_state_passed_on_equal_the_whole(chunks: list[int], isa: str) -> None:
    """Includes chunks shorter than the convolution, whose history spans several chunks."""
    case = RelaOperands([sum(chunks)], 16, 2, causal=True)
    whole = case.gradients()
    state, outs = None, []
    for rows in zip(*(case.inputs[name].split(chunks) for name in ("qk", "v", "g")), strict=True):
        qk, v, g = rows
        q, k = qk.chunk(2, dim=-1)
        weights = {name: case.inputs[name] for name in ("conv_weight", "conv_bias")}
        cu_seqlens = cu_seqlens_of([len(v)])
        y, state = gated_rela(
            q, k, v, g, cu_seqlens, **weights, **case.options, initial_state=state, return_state=True
        )
        outs.append(y)
    assert state is not None and state.position.tolist() == [sum(chunks)]
    y = torch.cat(outs)
    grads = torch.autograd.grad(y, list(case.inputs.values()), case.d_y)
    for name, got in zip(("y", *case.inputs), (y, *grads), strict=True):
        assert_close(name, whole[name], got, 1e-11)


def test_a_state_under_compile_and_autocast() -> None:
    case = RelaOperands([5, 2], 8, 2, causal=True, dtype=torch.float32)
    state = case.state(requires_grad=True)
    case.options["return_state"] = True

    def f(kv_state: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        case.options["initial_state"] = RelaState(kv_state, history, state.position)
        y, final = case.call()
        return y.sum() + final.kv_state.sum(), final.history

    expected = f(*state[:2])
    got = torch.compile(f, fullgraph=True, backend="aot_eager")(*state[:2])
    for i in range(2):  # each output alone
        assert_close("output", expected[i].detach(), got[i].detach(), 1e-6)
        grads = [
            torch.autograd.grad(out[i].sum(), state[:2], retain_graph=True, materialize_grads=True)
            for out in (expected, got)
        ]
        for a, b in zip(*grads, strict=True):
            assert_close("gradient", a, b, 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        case.options["rotary"] = case.options["rotary"].bfloat16()
        assert f(*state[:2])[1].dtype == torch.float32


def test_a_state_is_kept_by_empty_sequences() -> None:
    case = RelaOperands([0, 0], 8, 2, causal=True)
    state = case.state(requires_grad=True)
    _, final = case.call(lambda *a, **k: gated_rela(*a, **k, initial_state=state, return_state=True))
    assert all(torch.equal(a, b) for a, b in zip(state, final, strict=True))
    grads = torch.autograd.grad(
        final.kv_state.sum() + 2 * final.history.sum(), [state.kv_state, state.history]
    )
    assert (grads[0] == 1).all() and (grads[1] == 2).all()


BAD_STATES: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (lambda s: s, {"causal": False}, ValueError, "only the causal form has a state"),
    (
        lambda s: s._replace(kv_state=s.kv_state[:, :1]),
        {},
        ValueError,
        r"initial_state.kv_state must be \[2, 2, 5, 4\]",
    ),
    (
        lambda s: s._replace(kv_state=s.kv_state.double()),
        {},
        TypeError,
        "initial_state.kv_state is torch.float64",
    ),
    (
        lambda s: s._replace(history=s.history[:, 1:]),
        {},
        ValueError,
        r"initial_state.history must be \[2, 3, 8\]",
    ),
    (lambda s: s._replace(position=s.position[:1]), {}, ValueError, r"initial_state.position must be \[2\]"),
    (lambda s: s._replace(position=s.position.int()), {}, TypeError, "initial_state.position is torch.int32"),
    (lambda s: s._replace(position=s.position - 9), {}, RuntimeError, "must not be negative"),
    (lambda s: s._replace(position=s.position + 99), {}, RuntimeError, "rows and the initial position"),
    (
        lambda s: s._replace(position=s.position + 2**63 - 9),
        {},
        RuntimeError,
        "rows and the initial position",
    ),
    (lambda s: s._replace(history=None), {}, ValueError, "initial_state lacks one of"),
]


@pytest.mark.parametrize("change, options, error, message", BAD_STATES)
def test_bad_states(change: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    case = RelaOperands([3, 2], 8, 2, causal=True, dtype=torch.float32)
    state = change(case.state())
    case.options |= options
    with pytest.raises(error, match=message):
        case.call(lambda *a, **k: gated_rela(*a, **k, initial_state=state))
