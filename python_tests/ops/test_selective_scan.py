from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.support.tensors import assert_close, cu_seqlens_of, flops_of
from recgrela.ops import selective_scan, selective_scan_reference

UNEVEN = [1, 65, 0, 31, 32, 2, 33]
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
OPTIONAL = ("D", "z", "delta_bias", "initial_state")


# Operands that stay float32 if the others have half precision.
FLOAT32 = ("A", "D", "delta_bias", "initial_state")


def example() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Operands and other arguments of a small call, for test_support.py."""
    inputs = operands([3, 0, 4], 8, 3)
    return inputs, {"cu_seqlens": cu_seqlens_of([3, 0, 4]), "return_state": True}


def operands(
    lengths: list[int],
    channels: int,
    states: int,
    *,
    without: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    rows = (sum(lengths),)
    shapes = dict.fromkeys(("u", "delta", "z"), (*rows, channels))
    shapes |= dict.fromkeys(("B", "C"), (*rows, states))
    shapes |= {"A": (channels, states), "D": (channels,), "delta_bias": (channels,)}
    shapes["initial_state"] = (len(lengths), channels, states)
    drawn: dict[str, Any] = dict.fromkeys(NAMES)
    for name in NAMES:
        if name not in without:
            x = torch.randn(*shapes[name], dtype=dtype)
            drawn[name] = (-x.abs() if name == "A" else x).requires_grad_()
    return drawn


def results(
    op: Any,
    inputs: dict[str, Any],
    cu_seqlens: Tensor,
    grads: tuple[Tensor, Tensor],
    softplus: bool = True,
) -> dict[str, Tensor]:
    """y, the final states and the gradients, by name."""
    y, final_state = op(**inputs, cu_seqlens=cu_seqlens, delta_softplus=softplus, return_state=True)
    present = {name: x for name, x in inputs.items() if x is not None}
    gradients = torch.autograd.grad([y, final_state], list(present.values()), list(grads))
    named = zip((f"d_{name}" for name in present), gradients, strict=True)
    return {"y": y.detach(), "state": final_state.detach(), **dict(named)}


def grads_for(inputs: dict[str, Any], batch: int) -> tuple[Tensor, Tensor]:
    u, A = inputs["u"], inputs["A"]
    return torch.randn_like(u), torch.randn(batch, *A.shape, dtype=A.dtype)


def check(
    lengths: list[int], channels: int, states: int, without: tuple[str, ...] = (), softplus: bool = True
) -> None:
    inputs, cu_seqlens = operands(lengths, channels, states, without=without), cu_seqlens_of(lengths)
    if not softplus:  # a step is never negative
        inputs["delta"] = inputs["delta"].detach().abs().requires_grad_()
        inputs["delta_bias"] = None
    grads = grads_for(inputs, len(lengths))
    expected = results(selective_scan_reference, inputs, cu_seqlens, grads, softplus)
    got = results(selective_scan, inputs, cu_seqlens, grads, softplus)
    for name, e in expected.items():
        assert_close(name, e, got[name], 1e-12, scale=1.0)


@pytest.mark.parametrize("lengths", [[1], [2], [31], [32], [33], [65], [199], UNEVEN])
@pytest.mark.parametrize("without", [(), OPTIONAL])
def test_equals_reference_at_odd_lengths(lengths: list[int], without: tuple[str, ...], isa: str) -> None:
    check(lengths, 12, 5, without)


@pytest.mark.parametrize("states", [1, 2, 3, 16, 32, 256])
def test_equals_reference_at_any_number_of_states(states: int, isa: str) -> None:
    check([34, 0, 3], 5, states)


@pytest.mark.parametrize("channels", [1, 3, 8, 31, 100, 200])
def test_equals_reference_at_any_number_of_channels(channels: int, isa: str) -> None:
    """200 channels take several blocks."""
    check([34, 3], channels, 3)


@pytest.mark.parametrize("without", [(name,) for name in OPTIONAL])
@pytest.mark.parametrize("softplus", [True, False])
def test_optional_operands(without: tuple[str, ...], softplus: bool) -> None:
    check([40, 5], 6, 4, without, softplus)


def test_float32(isa: str) -> None:
    inputs, cu_seqlens = operands(UNEVEN, 50, 16), cu_seqlens_of(UNEVEN)
    grads = grads_for(inputs, len(UNEVEN))
    expected = results(selective_scan_reference, inputs, cu_seqlens, grads)
    single = {k: None if x is None else x.detach().float().requires_grad_() for k, x in inputs.items()}
    got = results(selective_scan, single, cu_seqlens, (grads[0].float(), grads[1].float()))
    for name, e in expected.items():
        assert got[name].dtype == torch.float32
        assert_close(name, e, got[name], 5e-6)


def test_steps_of_any_size(isa: str) -> None:
    """exp(delta A) from 1 down to 0, without overflow; softplus to full accuracy, however small."""
    delta = torch.tensor([-1e30, -80, -30, -10, -1, -1e-3, 0, 1e-3, 1, 19.9, 20.1, 100, 1e5, 1e30]).double()
    inputs = operands([len(delta)], 1, 2, without=OPTIONAL)
    inputs["delta"] = delta[:, None].requires_grad_()
    inputs["C"] = torch.ones_like(inputs["C"])
    cu_seqlens = cu_seqlens_of([len(delta)])
    y = selective_scan(**inputs, cu_seqlens=cu_seqlens)
    expected = selective_scan_reference(**inputs, cu_seqlens=cu_seqlens)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-300)  # relative, for each row
    grads = torch.autograd.grad(y.sum(), [x for x in inputs.values() if x is not None and x.requires_grad])
    assert all(grad.isfinite().all() for grad in grads)


def test_float32_softplus_is_accurate_where_it_is_small(isa: str) -> None:
    """A single step from a zero state with B C = 1 returns softplus(delta) u."""
    delta = torch.linspace(-80, 30, 1001)[:, None]
    ones = torch.ones_like(delta)
    cu_seqlens = torch.arange(len(delta) + 1)
    y = selective_scan(ones, delta, -torch.ones(1, 1), ones, ones, cu_seqlens=cu_seqlens)
    torch.testing.assert_close(y.double(), torch.nn.functional.softplus(delta.double()), rtol=2e-6, atol=0.0)


def test_no_decay_is_a_sum(isa: str) -> None:
    inputs, cu_seqlens = operands([50], 8, 3, without=OPTIONAL), cu_seqlens_of([50])
    inputs["A"] = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
    grads = grads_for(inputs, 1)
    got = results(selective_scan, inputs, cu_seqlens, grads)
    for name, e in results(selective_scan_reference, inputs, cu_seqlens, grads).items():
        assert_close(name, e, got[name], 1e-12)


@pytest.mark.parametrize("without", [(), OPTIONAL])
def test_gradcheck(without: tuple[str, ...]) -> None:
    lengths = [5, 2, 0, 1]
    inputs, cu_seqlens = operands(lengths, 3, 2, without=without), cu_seqlens_of(lengths)
    names = [name for name, x in inputs.items() if x is not None]

    def f(*values: Tensor) -> tuple[Tensor, Tensor]:
        present: dict[str, Any] = dict(zip(names, values, strict=True))
        return selective_scan(**present, cu_seqlens=cu_seqlens, return_state=True)

    assert torch.autograd.gradcheck(f, [inputs[name] for name in names])


@pytest.mark.parametrize("without", [(), OPTIONAL])
@pytest.mark.parametrize("lengths", [[3, 4], [40, 0, 70]])
def test_opcheck(without: tuple[str, ...], lengths: list[int]) -> None:
    *inputs, initial_state = operands(lengths, 8, 3, without=without).values()
    args = (*inputs, cu_seqlens_of(lengths), initial_state, True, not without, True)
    torch.library.opcheck(torch.ops.recgrela.selective_scan.default, args)
    detached = [t.detach() if isinstance(t, Tensor) else t for t in args]
    checkpoints = torch.ops.recgrela.selective_scan(*detached)[2]
    d_y = torch.randn(sum(lengths), 8, dtype=torch.float64)
    d_final_state = None if without else torch.randn(len(lengths), 8, 3, dtype=torch.float64)
    backward = torch.ops.recgrela.selective_scan_backward.default
    torch.library.opcheck(backward, (d_y, d_final_state, *detached[:10], checkpoints, True))


def test_compiles_without_a_graph_break() -> None:
    inputs, cu_seqlens = operands([3, 40], 8, 3), cu_seqlens_of([3, 40])

    def f(inputs: dict[str, Any]) -> Tensor:
        y, final_state = selective_scan(**inputs, cu_seqlens=cu_seqlens, return_state=True)
        return y.square().sum() + final_state.sum()

    values = list(inputs.values())
    expected = torch.autograd.grad(f(inputs), values)
    got = torch.autograd.grad(torch.compile(f, fullgraph=True, backend="aot_eager")(inputs), values)
    for a, b in zip(expected, got, strict=True):
        assert_close("gradient", a, b, 1e-12)


def test_strides_do_not_matter() -> None:
    lengths = [40, 0, 4]
    inputs, cu_seqlens = operands(lengths, 8, 4), cu_seqlens_of(lengths)
    d_y, d_final_state = grads_for(inputs, len(lengths))
    expected = results(selective_scan, inputs, cu_seqlens, (d_y, d_final_state))
    present = {name: x.detach() for name, x in inputs.items() if x is not None}
    strided = {
        "columns": {k: x.repeat_interleave(2, dim=-1)[..., ::2].requires_grad_() for k, x in present.items()},
        "slices": {
            k: torch.cat([x, x], dim=-1)[..., : x.shape[-1]].requires_grad_() for k, x in present.items()
        },
    }
    grads = {
        "columns": (d_y.t().contiguous().t(), d_final_state.mT.contiguous().mT),
        "slices": (torch.cat([d_y, d_y], dim=-1)[:, 8:], d_final_state),
    }
    for kind, values in strided.items():
        got = results(selective_scan, values, cu_seqlens, grads[kind])
        assert all(torch.equal(e, got[name]) for name, e in expected.items()), kind


def test_a_gradient_of_one_number() -> None:
    """The gradient of y.sum() is one number with strides of 0."""
    inputs, cu_seqlens = operands([5], 3, 2, without=OPTIONAL), cu_seqlens_of([5])
    (got,) = torch.autograd.grad(selective_scan(**inputs, cu_seqlens=cu_seqlens).sum(), inputs["u"])
    expected = selective_scan_reference(**inputs, cu_seqlens=cu_seqlens).sum()
    assert_close("d_u", torch.autograd.grad(expected, inputs["u"])[0], got, 1e-12)


def test_dense_equals_packed() -> None:
    inputs = operands([6, 6], 8, 4)
    packed = selective_scan(**inputs, cu_seqlens=cu_seqlens_of([6, 6]))
    rows = ("u", "delta", "B", "C", "z")
    dense = {k: x.unflatten(0, (2, 6)) if k in rows and x is not None else x for k, x in inputs.items()}
    assert torch.equal(selective_scan(**dense).flatten(0, 1), packed)


def test_chunks_with_the_state_passed_on_equal_the_whole() -> None:
    inputs = operands([75], 5, 3, without=("initial_state",))
    state, outs, start = None, [], 0
    for n in (1, 33, 41):
        chunk: dict[str, Any] = dict(inputs)
        for name in ("u", "delta", "B", "C", "z"):
            chunk[name] = chunk[name][start : start + n]
        chunk["initial_state"] = state
        y, state = selective_scan(**chunk, cu_seqlens=cu_seqlens_of([n]), return_state=True)
        outs.append(y)
        start += n
    whole = selective_scan(**inputs, cu_seqlens=cu_seqlens_of([75]))
    assert_close("y", whole, torch.cat(outs), 1e-13)
    wanted = [x for x in inputs.values() if x is not None]
    d_y = torch.randn_like(whole)
    for e, g in zip(
        torch.autograd.grad(whole, wanted, d_y),
        torch.autograd.grad(torch.cat(outs), wanted, d_y),
        strict=True,
    ):
        assert_close("gradient", e, g, 1e-12)


def test_gradient_through_the_states_alone() -> None:
    lengths = [40, 0, 2]
    inputs, cu_seqlens = operands(lengths, 3, 2), cu_seqlens_of(lengths)
    _, d_final_state = grads_for(inputs, 3)
    wanted = [x for name, x in inputs.items() if name not in ("C", "D", "z")]
    grads = []
    for op in (selective_scan_reference, selective_scan):
        _, final_state = op(**inputs, cu_seqlens=cu_seqlens, return_state=True)
        grads.append(torch.autograd.grad(final_state, wanted, d_final_state))
    for e, g in zip(*grads, strict=True):
        assert_close("gradient", e, g, 1e-12)
    assert torch.equal(grads[1][-1][1], d_final_state[1])  # an empty sequence passes its state on


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_empty_batch(lengths: list[int]) -> None:
    inputs, cu_seqlens = operands(lengths, 4, 3), cu_seqlens_of(lengths)
    grads = grads_for(inputs, len(lengths))
    got = results(selective_scan, inputs, cu_seqlens, grads)
    assert got["y"].shape == (0, 4) and torch.equal(got["state"], inputs["initial_state"])
    assert torch.equal(got["d_initial_state"], grads[1])
    assert got["d_B"].shape == (0, 3)
    assert not any(got[name].any() for name in ("d_A", "d_D", "d_delta_bias"))


def test_saves_checkpoints_only_for_a_gradient() -> None:
    inputs, cu_seqlens = operands([70, 3], 4, 2), cu_seqlens_of([70, 3])
    *values, initial_state = inputs.values()
    op, shapes = torch.ops.recgrela.selective_scan, []

    class Shapes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func is op.default:
                shapes.append(tuple(out[2].shape))
            return out

    with Shapes():
        y = selective_scan(*values, cu_seqlens, initial_state=initial_state)
        with torch.no_grad():
            y_alone = selective_scan(*values, cu_seqlens, initial_state=initial_state)
    assert shapes == [(73 // 32 + 2, 4, 2), (0,)]
    assert torch.equal(y, y_alone)


def test_a_backward_without_checkpoints_is_refused() -> None:
    *inputs, initial_state = operands([3], 4, 2).values()
    y, _, _ = torch.ops.recgrela.selective_scan(
        *inputs, cu_seqlens_of([3]), initial_state, True, False, False
    )
    with pytest.raises(RuntimeError, match="needs save_checkpoints=True"):
        y.sum().backward()


def test_autocast_computes_in_float32() -> None:
    inputs, cu_seqlens = operands([6, 3], 8, 4), cu_seqlens_of([6, 3])
    half = {k: None if x is None else x.detach().bfloat16() for k, x in inputs.items()}
    single = {k: None if x is None else x.float() for k, x in half.items()}
    # as modules return them: projections in half precision, parameters in float32
    mixed = half | {k: single[k] for k in ("A", "D", "delta_bias", "initial_state")}
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan(**mixed, cu_seqlens=cu_seqlens)
    assert y.dtype == torch.float32
    assert torch.equal(y, selective_scan(**single, cu_seqlens=cu_seqlens))


@pytest.mark.parametrize("lengths", [[700], [20] * 70])
def test_same_bits_with_any_number_of_threads(lengths: list[int]) -> None:
    inputs = operands(lengths, 150, 5, dtype=torch.float32)
    cu_seqlens, grads = cu_seqlens_of(lengths), grads_for(inputs, len(lengths))
    threads, runs = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        runs.append(results(selective_scan, inputs, cu_seqlens, grads))
    torch.set_num_threads(threads)
    assert all(torch.equal(e, runs[1][name]) for name, e in runs[0].items())


def test_second_derivatives_are_refused() -> None:
    inputs = operands([3], 2, 2)
    y = selective_scan(**inputs, cu_seqlens=cu_seqlens_of([3]))
    (grad,) = torch.autograd.grad(y.sum(), inputs["u"], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()


def test_flops() -> None:
    x, cu_seqlens = torch.randn(7, 16), torch.tensor([0, 7])
    A, b, d = torch.randn(16, 5), torch.randn(7, 5), torch.randn(16)
    assert flops_of(lambda: selective_scan(x, x, A, b, b, cu_seqlens=cu_seqlens)) == 9 * 7 * 16 * 5
    more = flops_of(lambda: selective_scan(x, x, A, b, b, d, x, d, cu_seqlens))
    assert more == 9 * 7 * 16 * 5 + 2 * 7 * 16
