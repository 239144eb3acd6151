from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.ops.gated_rela_case import RelaOperands
from python_tests.support.tensors import assert_close, flops_of
from recgrela.ops import gated_rela, gated_rela_reference, rotary_table

UNEVEN = [1, 257, 0, 3, 64, 2, 65, 129]
FLOAT32 = ("conv_weight", "conv_bias")  # operands that stay float32 if the others have half precision


def example() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Operands and other arguments of a small call, for test_support.py."""
    case = RelaOperands([3, 0, 4], 8, 2, causal=True)
    q, k = (x.detach().requires_grad_() for x in case.inputs.pop("qk").chunk(2, dim=-1))
    return {"q": q, "k": k, **case.inputs}, {"cu_seqlens": case.cu_seqlens, **case.options}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [[1], [2], [3], [4], [5], [199], [200], [257], UNEVEN])
def test_equals_reference_at_odd_lengths(lengths: list[int], causal: bool, isa: str) -> None:
    RelaOperands(lengths, causal=causal).check(1e-11)


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("lengths", [[512, 70], [513, 70]])
def test_long_sequences(lengths: list[int], rotary: bool, isa: str) -> None:
    """The bidirectional backward keeps the keys' features of up to 512 rows, and recomputes them beyond."""
    RelaOperands(lengths, 16, 2, causal=False, rotary=rotary).check(1e-11)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dim, num_heads", [(64, h) for h in (1, 2, 4, 8, 16)] + [(2, 1), (12, 2), (40, 2)])
def test_equals_reference_at_every_head_dim(dim: int, num_heads: int, causal: bool, isa: str) -> None:
    RelaOperands([67, 5], dim, num_heads, causal=causal).check(1e-11)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("kernel_size", [0, 1, 2, 3, 4, 7])
def test_equals_reference_without_optional_operands(
    causal: bool, rotary: bool, gate: bool, kernel_size: int
) -> None:
    case = RelaOperands([70, 2, 1], 16, 2, causal=causal, rotary=rotary, gate=gate, kernel_size=kernel_size)
    case.check(1e-11)


@pytest.mark.parametrize("causal", [True, False])
def test_float32(causal: bool, isa: str) -> None:
    case = RelaOperands(UNEVEN, causal=causal, dtype=torch.float32)
    got = case.gradients()
    for name in case.inputs:
        case.inputs[name] = case.inputs[name].detach().double().requires_grad_()
    case.options["rotary"], case.d_y = case.options["rotary"].double(), case.d_y.double()
    for name, value in case.gradients(gated_rela_reference).items():
        assert_close(name, value, got[name], 2e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_q_and_k_side_by_side(causal: bool) -> None:
    case = RelaOperands([70, 3], 16, 2, causal=causal)
    apart = case.gradients()
    case.side_by_side = True
    together = case.gradients()
    assert all(torch.equal(together[name], value) for name, value in apart.items())
    dense = gated_rela(
        case.inputs["qk"][None, :70],
        None,
        case.inputs["v"][None, :70],
        case.inputs["g"][None, :70],
        conv_weight=case.inputs["conv_weight"],
        conv_bias=case.inputs["conv_bias"],
        **case.options,
    )
    assert torch.equal(dense[0], together["y"][:70])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("side_by_side", [True, False])
@pytest.mark.parametrize("lengths", [[1], [5, 2, 0, 3]])
def test_gradcheck(lengths: list[int], side_by_side: bool, causal: bool) -> None:
    case = RelaOperands(lengths, 8, 2, causal=causal, side_by_side=side_by_side)

    def f(*values: Tensor) -> Tensor:
        return case.call(inputs=dict(zip(case.inputs, values, strict=True)))

    assert torch.autograd.gradcheck(f, list(case.inputs.values()))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_opcheck(causal: bool, full: bool) -> None:
    case = RelaOperands([3, 4], 8, 2, causal=causal, rotary=full, gate=full, kernel_size=4 if full else 0)
    x = case.inputs
    q, k = (t.detach().requires_grad_() for t in x["qk"].chunk(2, dim=-1))
    operands = (*((q, k) if full else (x["qk"], None)), x["v"], x.get("g"), case.cu_seqlens)
    with_state = causal and full
    state = case.state(requires_grad=True) if with_state else (None, None, None)
    rest = (case.options.get("rotary"), x.get("conv_weight"), x.get("conv_bias"))
    args = (*operands, *rest, *state, 2, causal, 1e-6, with_state)
    torch.library.opcheck(torch.ops.recgrela.gated_rela.default, args)
    detached = [t.detach() if isinstance(t, Tensor) else t for t in args[:-1]]
    d_state = [torch.randn_like(t) for t in state[:2]] if with_state else (None, None)
    torch.library.opcheck(
        torch.ops.recgrela.gated_rela_backward.default, (case.d_y, *d_state, None, *detached)
    )


@pytest.mark.parametrize("causal", [True, False])
def test_compiles_without_a_graph_break(causal: bool) -> None:
    case = RelaOperands([6, 1], 8, 2, causal=causal)

    def f(inputs: dict[str, Tensor]) -> Tensor:
        return case.call(inputs=inputs).square().sum()

    expected = torch.autograd.grad(f(case.inputs), list(case.inputs.values()))
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(case.inputs), list(case.inputs.values()))
    for name, a, b in zip(case.inputs, expected, got, strict=True):
        assert_close(name, a, b, 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_strides_of_operands_and_gradients_do_not_matter(causal: bool) -> None:
    case = RelaOperands([17, 4], 16, 2, causal=causal)
    expected = case.gradients()
    layouts = {
        "rows apart": lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],
        "transposed": lambda x: x.t().contiguous().t(),
        "every other column": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    }
    for how, layout in layouts.items():
        inputs = {
            name: layout(x.detach()).requires_grad_() for name, x in case.inputs.items() if x.dim() == 2
        }
        inputs["conv_bias"] = case.inputs["conv_bias"].detach().repeat_interleave(2)[::2].requires_grad_()
        assert not inputs["v"].is_contiguous() and not inputs["conv_bias"].is_contiguous()
        grads = torch.autograd.grad(case.call(inputs=inputs), list(inputs.values()), layout(case.d_y))
        for name, grad in zip(inputs, grads, strict=True):
            assert torch.equal(grad, expected[name]), f"{name}, {how}"
    # The gradient of sum() is expanded: its strides are 0.
    ones = torch.autograd.grad(case.call(), list(case.inputs.values()), torch.ones_like(case.d_y))
    summed = torch.autograd.grad(case.call().sum(), list(case.inputs.values()))
    assert all(torch.equal(a, b) for a, b in zip(ones, summed, strict=True))


@pytest.mark.parametrize("causal", [True, False])
def test_packed_equals_one_by_one_and_dense(causal: bool) -> None:
    lengths = [9, 1, 130]
    case = RelaOperands(lengths, 16, 2, causal=causal)
    y = case.call()
    q, k = case.inputs["qk"].chunk(2, dim=-1)
    weights = {name: case.inputs[name] for name in ("conv_weight", "conv_bias")}
    for start, end in zip(case.cu_seqlens[:-1].tolist(), case.cu_seqlens[1:].tolist(), strict=True):
        rows = (x[None, start:end] for x in (q, k, case.inputs["v"], case.inputs["g"]))
        alone = gated_rela(*rows, **weights, **case.options)
        assert torch.equal(alone[0], y[start:end])


def test_causal_rows_attend_to_no_later_row() -> None:
    case = RelaOperands([40], 8, 2, causal=True)
    before = case.call()
    changed = {name: x.detach().clone() for name, x in case.inputs.items()}
    for name in ("qk", "v", "g"):
        changed[name][25:] += 1
    assert torch.equal(case.call(inputs=changed)[:25], before[:25])


@pytest.mark.parametrize("causal", [True, False])
def test_bitwise_the_same_for_any_number_of_threads(causal: bool) -> None:
    case = RelaOperands([200] * 8 + UNEVEN, causal=causal, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results += [case.gradients(), case.gradients()]
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(other[name], value) for name, value in results[0].items())


def test_many_sequences_share_groups() -> None:
    RelaOperands([3, 1, 2] * 700, 4, 1, causal=True, dtype=torch.float64).check(1e-11)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_empty_batches_and_sequences(dtype: torch.dtype) -> None:
    for lengths in ([], [0], [0, 0, 0]):
        case = RelaOperands(lengths, 8, 2, causal=True)
        case.cu_seqlens = case.cu_seqlens.to(dtype)
        got = case.gradients()
        assert got["y"].shape == (0, 8)
        assert not got["conv_weight"].any() and not got["conv_bias"].any()


@pytest.mark.parametrize("causal", [True, False])
def test_extreme_operands_stay_finite(causal: bool) -> None:
    case = RelaOperands([50, 3], 16, 2, causal=causal, dtype=torch.float32)
    with torch.no_grad():
        for name in ("qk", "v", "g"):
            case.inputs[name] *= 200
    for name, value in case.gradients().items():
        assert value.isfinite().all(), name


def test_nan_spreads_no_further_than_its_sequence() -> None:
    case = RelaOperands([4, 5], 8, 2, causal=False)
    with torch.no_grad():
        case.inputs["qk"][2, 0] = float("nan")
    y = case.call()
    assert y[:4].isnan().any() and y[4:].isfinite().all()


def test_autocast_computes_in_float32() -> None:
    case = RelaOperands([6, 3], 8, 2, causal=True, dtype=torch.float32)
    half = {name: x.detach().bfloat16().requires_grad_() for name, x in case.inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = case.call(inputs=half)
    assert y.dtype == torch.float32
    single = {name: x.detach().float() for name, x in half.items()}
    assert torch.equal(y, case.call(inputs=single))
    grads = torch.autograd.grad(y, list(half.values()), case.d_y)
    assert all(g.dtype == torch.bfloat16 for g in grads)


def test_second_derivatives_are_refused() -> None:
    case = RelaOperands([3], 8, 2, causal=True)
    (grad,) = torch.autograd.grad(case.call().sum(), case.inputs["v"], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"num_heads": 3}, ValueError, "num_heads=3 must divide the width 8"),
    ({"num_heads": 8}, ValueError, "heads of an even width"),
    ({"num_heads": 0}, ValueError, "num_heads=0"),
    ({"v": torch.randn(7)}, ValueError, r"with cu_seqlens v must be \[T, D\]"),
    ({"v": torch.zeros(7, 8, dtype=torch.int64)}, TypeError, "v must be one of float16, bfloat16"),
    ({"q": torch.randn(7)}, ValueError, r"q must be \[7, 8\], got shape \(7,\)"),
    ({"k": None}, ValueError, r"q must be \[7, 16\]"),
    ({"k": torch.randn(7, 6)}, ValueError, r"k must be \[7, 8\], got shape \(7, 6\)"),
    ({"v": torch.randn(6, 8)}, ValueError, r"q must be \[6, 8\]"),
    ({"g": torch.randn(7, 8).double()}, TypeError, "g is torch.float64, v is torch.float32"),
    ({"g": torch.randn(7, 8, device="meta")}, ValueError, "g is on meta"),
    ({"cu_seqlens": torch.tensor([0, 7], device="meta")}, ValueError, "cu_seqlens is on meta"),
    ({"cu_seqlens": torch.tensor([0.0, 7.0])}, TypeError, "cu_seqlens must be int32 or int64"),
    ({"cu_seqlens": torch.tensor([[0, 7]])}, ValueError, "cu_seqlens must be"),
    ({"cu_seqlens": None}, ValueError, "need cu_seqlens"),
    ({"cu_seqlens": torch.tensor([0, 6])}, RuntimeError, "end at 7"),
    ({"cu_seqlens": torch.tensor([1, 7])}, RuntimeError, "start at 0"),
    ({"cu_seqlens": torch.tensor([0, 5, 4, 7])}, RuntimeError, "must not decrease; it does at index 2"),
    ({"cu_seqlens": torch.tensor([0, 2**63 - 1, -(2**63), -1, 7])}, RuntimeError, "must not decrease"),
    ({"rotary": rotary_table(3, 8)}, RuntimeError, "table has 3 positions; the longest sequence has 4"),
    ({"rotary": rotary_table(9, 6)}, ValueError, r"rotary must be \[P, 4, 2\]"),
    ({"rotary": rotary_table(9, 8, dtype=torch.float64)}, TypeError, "rotary is torch.float64"),
    ({"conv_bias": None}, ValueError, "go together"),
    ({"conv_weight": torch.randn(4, 8)}, ValueError, r"conv_weight must be \[8, K\]"),
    ({"conv_weight": torch.randn(8, 0)}, ValueError, "kernel size 0"),
    ({"conv_weight": torch.tensor(1.0)}, ValueError, r"conv_weight must be \[8, K\]"),
    ({"cu_seqlens": torch.tensor(7)}, ValueError, "cu_seqlens must be"),
    ({"conv_bias": torch.randn(4)}, ValueError, r"conv_bias must be \[8\]"),
]


@pytest.mark.parametrize("change, error, message", BAD)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    args: dict[str, Any] = {
        **{name: torch.randn(7, 8) for name in ("q", "k", "v", "g")},
        "cu_seqlens": torch.tensor([0, 3, 7]),
        "num_heads": 2,
        "causal": True,
        "rotary": rotary_table(9, 8),
        "conv_weight": torch.randn(8, 4),
        "conv_bias": torch.randn(8),
    }
    with pytest.raises(error, match=message):
        gated_rela(**(args | change))
    if error is not TypeError and "device" not in message:  # autocast converts dtypes, nothing else
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(error, match=message):
            gated_rela(**(args | change))


def test_dense_operands_must_agree_in_batch_and_length() -> None:
    v, swapped = torch.randn(2, 7, 8), torch.randn(7, 2, 8)
    for operands in ((swapped, v, v, None), (v, swapped, v, None), (v, v, v, swapped), (v, v[0], v, None)):
        with pytest.raises(ValueError, match=r"must be \[2, 7, 8\]"):
            gated_rela(*operands, num_heads=2, causal=True)


def test_the_bare_op_refuses_a_meta_operand() -> None:
    x, cu_seqlens = torch.randn(7, 8), torch.tensor([0, 7], device="meta")
    absent = (None,) * 6
    with pytest.raises(ValueError, match="several devices"):
        torch.ops.recgrela.gated_rela(x, x, x, None, cu_seqlens, *absent, 2, True, 1e-6, False)


def test_the_bare_op_refuses_states_of_the_other_form() -> None:
    x, cu_seqlens, absent = torch.randn(7, 8), torch.tensor([0, 7]), (None,) * 6
    operands = (x, x, x, None, cu_seqlens, *absent, 2)
    with pytest.raises(RuntimeError, match="only the causal form has a state"):  # the CUDA kernels have both
        torch.ops.recgrela.gated_rela(*operands, False, 1e-6, True)
    sums = torch.randn(1, 2, 5, 4)
    with pytest.raises(RuntimeError, match="only the bidirectional form takes final_kv_state"):
        torch.ops.recgrela.gated_rela_backward(x, None, None, sums, *operands, True, 1e-6)


def test_meta_operands_give_the_shape() -> None:
    x = torch.randn(7, 8, device="meta")
    y = gated_rela(x, x, x, x, torch.tensor([0, 7], device="meta"), num_heads=2, causal=True)
    assert y.device.type == "meta" and y.shape == (7, 8)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("side_by_side", [True, False])
def test_flops(causal: bool, side_by_side: bool) -> None:
    case = RelaOperands([3, 4], 16, 2, causal=causal, side_by_side=side_by_side, gate=False, kernel_size=0)
    state = 2 * 7 * 2 * 8 * 8  # k^T v of each head, added up
    normalizer = 2 * 7 * 16 + 2 * 7 * 16  # the sum of keys, counted as multiply-adds, and its product with q
    plain = flops_of(case.call)
    assert plain == state + state + normalizer  # the product of q with the state takes as many
    convolved = RelaOperands([3, 4], 16, 2, causal=causal, side_by_side=side_by_side)
    assert flops_of(convolved.call) == plain + 2 * 7 * 16 * 4
