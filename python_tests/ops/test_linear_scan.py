from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.support.tensors import assert_close, cu_seqlens_of, flops_of
from recgrela.ops import implementation_for, linear_scan, linear_scan_reference

UNEVEN = [1, 65, 0, 31, 32, 2, 33]
DTYPES = [torch.float64, torch.complex128]


FLOAT32 = ("a",)  # operands that stay float32 if the others have half precision


def example() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Operands and other arguments of a small call, for test_support.py."""
    x, a, _ = operands([3, 0, 4], 8, per_step=False)
    return {"x": x, "a": a}, {"cu_seqlens": cu_seqlens_of([3, 0, 4])}


def draw(*shape: int, dtype: torch.dtype = torch.float64, largest: float | None = None) -> Tensor:
    """Random numbers; `largest` bounds their modulus, so that coefficients keep states finite."""
    x = torch.randn(*shape, dtype=dtype)
    return (x if largest is None else x / (x.abs() / largest).clamp(min=1)).requires_grad_()


def operands(
    lengths: list[int], channels: int, dtype: torch.dtype = torch.float64, *, per_step: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """x, a and the initial states."""
    rows = sum(lengths)
    a = draw(*([rows] if per_step else []), channels, dtype=dtype, largest=0.99)
    return draw(rows, channels, dtype=dtype), a, draw(len(lengths), channels, dtype=dtype)


def real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def results(op: Any, inputs: list[Tensor], cu_seqlens: Tensor, grads: tuple[Tensor, Tensor]) -> list[Tensor]:
    """h, the final states and the gradients."""
    x, a, *rest = inputs
    h, final_state = op(x, a, cu_seqlens, initial_state=rest[0] if rest else None, return_state=True)
    return [h.detach(), final_state.detach(), *torch.autograd.grad([h, final_state], inputs, list(grads))]


def check(lengths: list[int], channels: int, dtype: torch.dtype, *, per_step: bool, state: bool) -> None:
    x, a, initial_state = operands(lengths, channels, dtype, per_step=per_step)
    inputs, cu_seqlens = [x, a, initial_state] if state else [x, a], cu_seqlens_of(lengths)
    grads = (torch.randn_like(x), torch.randn_like(initial_state))
    expected, got = (results(op, inputs, cu_seqlens, grads) for op in (linear_scan_reference, linear_scan))
    names = ("h", "state", "d_x", "d_a", "d_initial_state")
    for name, e, g in zip(names, expected, got, strict=False):
        assert_close(name, real(e), real(g), 1e-12, scale=1.0)


@pytest.mark.parametrize("lengths", [[1], [2], [31], [32], [33], [65], [199], UNEVEN])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_step", [True, False])
def test_equals_reference_at_odd_lengths(
    lengths: list[int], dtype: torch.dtype, per_step: bool, isa: str
) -> None:
    check(lengths, 16, dtype, per_step=per_step, state=True)


@pytest.mark.parametrize("channels", [1, 3, 8, 31, 50, 100, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_step", [True, False])
def test_equals_reference_at_any_number_of_channels(
    channels: int, dtype: torch.dtype, per_step: bool, isa: str
) -> None:
    check([7, 0, 3], channels, dtype, per_step=per_step, state=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_single_precision(dtype: torch.dtype, isa: str) -> None:
    double = torch.complex128 if dtype.is_complex else torch.float64
    x, a, initial_state = (t.detach() for t in operands(UNEVEN, 50, double))
    cu_seqlens = cu_seqlens_of(UNEVEN)
    expected = linear_scan_reference(x, a, cu_seqlens, initial_state)
    got = linear_scan(x.to(dtype), a.to(dtype), cu_seqlens, initial_state=initial_state.to(dtype))
    assert got.dtype == dtype
    assert_close("h", real(expected), real(got), 2e-6)


def test_the_gradient_of_a_constant_stays_accurate_over_many_rows() -> None:
    x, a = torch.rand(1 << 17, 32), 0.9 * torch.rand(32)
    grads = []
    for dtype in (torch.float64, torch.float32):
        constant = a.to(dtype).requires_grad_()
        h = linear_scan(x.to(dtype), constant, cu_seqlens_of([len(x)]))
        grads.append(torch.autograd.grad(h.sum(), constant)[0])
    assert_close("d_a", *grads, 5e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_step", [True, False])
def test_gradcheck(dtype: torch.dtype, per_step: bool) -> None:
    lengths = [5, 2, 0, 1]
    cu_seqlens = cu_seqlens_of(lengths)

    def f(x: Tensor, a: Tensor, initial_state: Tensor) -> tuple[Tensor, Tensor]:
        return linear_scan(x, a, cu_seqlens, initial_state=initial_state, return_state=True)

    assert torch.autograd.gradcheck(f, operands(lengths, 3, dtype, per_step=per_step))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("state", [True, False])
def test_opcheck(dtype: torch.dtype, state: bool) -> None:
    x, a, initial_state = operands([3, 4], 8, dtype, per_step=state)
    args = (x, a, cu_seqlens_of([3, 4]), initial_state if state else None, state)
    torch.library.opcheck(torch.ops.recgrela.linear_scan.default, args)
    d_h, d_final_state = torch.randn_like(x), torch.randn_like(initial_state) if state else None
    detached = [t.detach() if isinstance(t, Tensor) else t for t in args[1:-1]]
    backward = torch.ops.recgrela.linear_scan_backward.default
    torch.library.opcheck(backward, (d_h, d_final_state, *detached, torch.randn_like(x).detach()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiles_without_a_graph_break(dtype: torch.dtype) -> None:
    inputs, cu_seqlens = operands([3, 4], 8, dtype), cu_seqlens_of([3, 4])

    def f(x: Tensor, a: Tensor, initial_state: Tensor) -> Tensor:
        h, final_state = linear_scan(x, a, cu_seqlens, initial_state=initial_state, return_state=True)
        return h.abs().square().sum() + final_state.abs().sum()

    expected = torch.autograd.grad(f(*inputs), inputs)
    got = torch.autograd.grad(torch.compile(f, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    for a, b in zip(expected, got, strict=True):
        assert_close("gradient", real(a), real(b), 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_step", [True, False])
def test_strides_do_not_matter(dtype: torch.dtype, per_step: bool) -> None:
    lengths = [20, 0, 4]
    inputs, cu_seqlens = list(operands(lengths, 8, dtype, per_step=per_step)), cu_seqlens_of(lengths)
    d_h, d_final_state = torch.randn_like(inputs[0]), torch.randn_like(inputs[2])
    expected = results(linear_scan, inputs, cu_seqlens, (d_h, d_final_state))
    columns = [t.detach().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_() for t in inputs]
    got = results(
        linear_scan, columns, cu_seqlens, (d_h.t().contiguous().t(), d_final_state.t().contiguous().t())
    )
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    slices = [torch.cat([t, t], dim=-1).detach()[..., :8].requires_grad_() for t in inputs]
    got = results(linear_scan, slices, cu_seqlens, (torch.cat([d_h, d_h], dim=-1)[:, 8:], d_final_state))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_lazy_conjugates() -> None:
    x, a, _ = (t.detach() for t in operands([9], 4, torch.complex128))
    cu_seqlens = cu_seqlens_of([9])
    assert x.conj().is_conj()
    expected = linear_scan(x.conj().resolve_conj(), a.conj().resolve_conj(), cu_seqlens)
    assert torch.equal(linear_scan(x.conj(), a.conj(), cu_seqlens), expected)


def test_expanded_coefficients_equal_constant_ones() -> None:
    x, a, _ = operands(UNEVEN, 8, per_step=False)
    cu_seqlens, d_h = cu_seqlens_of(UNEVEN), torch.randn_like(x)
    h, expanded = linear_scan(x, a, cu_seqlens), linear_scan(x, a.expand(len(x), -1), cu_seqlens)
    assert torch.equal(h, expanded)
    (d_a,), (d_expanded,) = torch.autograd.grad(h, a, d_h), torch.autograd.grad(expanded, a, d_h)
    assert_close("d_a", d_a, d_expanded, 1e-12)


@pytest.mark.parametrize("per_step", [True, False])
def test_dense_equals_packed(per_step: bool) -> None:
    x, a, _ = operands([6, 6], 8, per_step=per_step)
    packed = linear_scan(x, a, cu_seqlens_of([6, 6]))
    dense = linear_scan(x.view(2, 6, 8), a.view(2, 6, 8) if per_step else a)
    assert torch.equal(dense.flatten(0, 1), packed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_with_the_state_passed_on_equal_the_whole(dtype: torch.dtype) -> None:
    x, a, _ = operands([40], 5, dtype)
    state, outs = None, []
    for chunk, steps in zip(x.split([1, 33, 6]), a.split([1, 33, 6]), strict=True):
        h, state = linear_scan(
            chunk, steps, cu_seqlens_of([len(chunk)]), initial_state=state, return_state=True
        )
        outs.append(h)
    whole = linear_scan(x, a, cu_seqlens_of([40]))
    assert torch.equal(whole, torch.cat(outs))
    d_h = torch.randn_like(x)
    for e, g in zip(
        torch.autograd.grad(whole, [x, a], d_h),
        torch.autograd.grad(torch.cat(outs), [x, a], d_h),
        strict=True,
    ):
        assert_close("gradient", real(e), real(g), 1e-13)


def test_gradient_through_the_states_alone() -> None:
    x, a, initial_state = operands([4, 0, 2], 3)
    cu_seqlens, d_final_state = cu_seqlens_of([4, 0, 2]), torch.randn(3, 3, dtype=torch.float64)
    grads = []
    for op in (linear_scan_reference, linear_scan):
        _, final_state = op(x, a, cu_seqlens, initial_state=initial_state, return_state=True)
        grads.append(torch.autograd.grad(final_state, [x, a, initial_state], d_final_state))
    for e, g in zip(*grads, strict=True):
        assert_close("gradient", e, g, 1e-13)
    assert torch.equal(grads[1][2][1], d_final_state[1])  # an empty sequence passes its state on


@pytest.mark.parametrize("lengths", [[], [0, 0]])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_step", [True, False])
def test_empty_batch(lengths: list[int], dtype: torch.dtype, per_step: bool) -> None:
    x, a, initial_state = operands(lengths, 4, dtype, per_step=per_step)
    cu_seqlens = cu_seqlens_of(lengths)
    h, final_state = linear_scan(x, a, cu_seqlens, initial_state=initial_state, return_state=True)
    assert h.shape == (0, 4) and torch.equal(final_state, initial_state)
    d_x, d_a, d_initial_state = torch.autograd.grad(
        [h, final_state], [x, a, initial_state], [torch.zeros_like(h), initial_state.detach()]
    )
    assert d_x.shape == (0, 4) and not d_a.any() and torch.equal(d_initial_state, initial_state)
    _, final_state = linear_scan(x, a, cu_seqlens, return_state=True)
    assert final_state.shape == initial_state.shape and not final_state.any()


def test_autocast_computes_in_float32() -> None:
    x, a, initial_state = (t.detach().bfloat16() for t in operands([6, 3], 8))
    cu_seqlens = cu_seqlens_of([6, 3])
    with torch.autocast("cpu", torch.bfloat16):
        h = linear_scan(x, a.float(), cu_seqlens, initial_state=initial_state)
    expected = linear_scan(x.float(), a.float(), cu_seqlens, initial_state=initial_state.float())
    assert h.dtype == torch.float32 and torch.equal(h, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_autocast_leaves_other_dtypes_alone(dtype: torch.dtype) -> None:
    x, a, _ = operands([6, 3], 8, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        h = linear_scan(x, a, cu_seqlens_of([6, 3]))
    assert torch.equal(h, linear_scan(x, a, cu_seqlens_of([6, 3])))


@pytest.mark.parametrize("lengths", [[2000], [40] * 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("per_step", [True, False])
def test_same_bits_with_any_number_of_threads(lengths: list[int], dtype: torch.dtype, per_step: bool) -> None:
    x, a, initial_state = operands(lengths, 50, dtype, per_step=per_step)
    cu_seqlens, grads = cu_seqlens_of(lengths), (torch.randn_like(x), torch.randn_like(initial_state))
    threads, runs = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        runs.append(results(linear_scan, [x, a, initial_state], cu_seqlens, grads))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_second_derivatives_are_refused() -> None:
    x, a, _ = operands([3], 2)
    (grad,) = torch.autograd.grad(linear_scan(x, a, cu_seqlens_of([3])).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.randn(7)}, ValueError, r"with cu_seqlens x must be \[T, D\]"),
        (
            {"x": torch.randn(7, 4).to(torch.float8_e5m2)},
            TypeError,
            "x must be one of float16, bf",
        ),
        ({"x": torch.ones(7, 4, dtype=torch.int64)}, TypeError, "x must be one of float16.*got torch.int64"),
        ({"x": torch.randn(7, 4, dtype=torch.complex64)}, TypeError, "a is torch.float32; with x in"),
        ({"a": torch.randn(3)}, ValueError, r"a must be \[4\]"),
        ({"a": torch.randn(6, 4)}, ValueError, r"a must be \[7, 4\]"),
        ({"a": torch.randn(4).double()}, TypeError, "a is torch.float64; with x in"),
        ({"a": torch.randn(4, device="meta")}, ValueError, "a is on meta"),
        ({"initial_state": torch.randn(3, 4)}, ValueError, r"initial_state must be \[2, 4\]"),
        ({"initial_state": torch.randn(2, 4).double()}, TypeError, "initial_state is torch.float64"),
        ({"cu_seqlens": None}, ValueError, "need cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0.0, 7.0])}, TypeError, "cu_seqlens must be int32 or int64"),
        ({"cu_seqlens": torch.tensor([0, 8])}, RuntimeError, "end at 7"),
        ({"cu_seqlens": torch.tensor([0, 2**63 - 1, -(2**63), 7])}, RuntimeError, "must not decrease"),
        ({"cu_seqlens": torch.tensor([0, 9, 7])}, RuntimeError, "must not decrease"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    args: dict[str, Any] = {
        "x": torch.randn(7, 4),
        "a": torch.randn(4),
        "cu_seqlens": torch.tensor([0, 3, 7]),
    }
    with pytest.raises(error, match=message):
        linear_scan(**(args | change))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"a": torch.randn(5)}, "a must have the shape"),
        ({"a": torch.randn(6, 4)}, "a must have the shape"),
        ({"a": torch.randn(4).double()}, "a must have the shape"),
        ({"initial_state": torch.randn(2, 3)}, "initial_state must have the shape"),
        ({"h": torch.randn(6, 4)}, "d_h must have the shape"),
        ({"cu_seqlens": torch.tensor([0, 3, 8])}, "end at 7"),
        ({"cu_seqlens": torch.tensor([0.0, 3, 7])}, "cu_seqlens must be"),
        ({"d_h": torch.randn(7, 3)}, "d_h must have the shape"),
        ({"d_final_state": torch.randn(1, 4)}, "d_final_state must have the shape"),
    ],
)
def test_the_operator_itself_checks_shapes(change: dict[str, Any], message: str) -> None:
    """Direct calls of the operator must not access memory outside the tensors."""
    args: dict[str, Any] = {
        "d_h": torch.randn(7, 4),
        "d_final_state": torch.randn(2, 4),
        "a": torch.randn(4),
        "cu_seqlens": torch.tensor([0, 3, 7]),
        "initial_state": torch.randn(2, 4),
        "h": torch.randn(7, 4),
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.recgrela.linear_scan_backward(*(args | change).values())


@pytest.mark.parametrize(
    "device, dtype, expected",
    [
        ("cpu", torch.complex128, ("kernel", torch.complex128)),
        ("cuda", torch.bfloat16, ("kernel", torch.bfloat16)),
        ("cuda", torch.float64, ("reference", torch.float64)),
        ("cuda", torch.complex128, ("reference", torch.complex128)),
    ],
)
def test_which_implementation_runs(
    device: str, dtype: torch.dtype, expected: tuple[str, torch.dtype]
) -> None:
    assert implementation_for("linear_scan", device, dtype) == expected


def test_flops() -> None:
    x, cu_seqlens = torch.randn(7, 16), torch.tensor([0, 7])
    assert flops_of(lambda: linear_scan(x, x, cu_seqlens)) == 2 * 7 * 16
    assert flops_of(lambda: linear_scan(x.cfloat(), x[0].cfloat(), cu_seqlens)) == 8 * 7 * 16
