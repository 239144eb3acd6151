from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.support.tensors import assert_close, cu_seqlens_of, flops_of
from recgrela.ops import RelaState, gated_rela, gated_rela_reference, rotary_table

UNEVEN = [1, 257, 0, 3, 64, 2, 65, 129]


class Case:
    """Random operands; q and k come from one projection, as in the model."""

    def __init__(
        self,
        lengths: list[int],
        dim: int = 64,
        num_heads: int = 4,
        *,
        causal: bool,
        rotary: bool = True,
        gate: bool = True,
        kernel_size: int = 4,
        dtype: torch.dtype = torch.float64,
        side_by_side: bool = False,
    ) -> None:
        def make(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=dtype).requires_grad_()

        rows = sum(lengths)
        self.side_by_side = side_by_side
        self.cu_seqlens = cu_seqlens_of(lengths)
        self.inputs = {"qk": make(rows, 2 * dim), "v": make(rows, dim)}
        if gate:
            self.inputs["g"] = make(rows, dim)
        if kernel_size:
            self.inputs |= {"conv_weight": make(dim, kernel_size), "conv_bias": make(dim)}
        self.options: dict[str, Any] = {"num_heads": num_heads, "causal": causal}
        if rotary:
            self.options["rotary"] = rotary_table(max(lengths, default=0), dim, dtype=dtype)
        self.d_y = torch.randn(rows, dim, dtype=dtype)

    def call(self, op: Any = gated_rela, inputs: dict[str, Tensor] | None = None) -> Tensor:
        x = dict(inputs or self.inputs)
        qk = x.pop("qk")
        q, k = (qk, None) if self.side_by_side else qk.chunk(2, dim=-1)
        return op(q, k, x.pop("v"), x.pop("g", None), self.cu_seqlens, **x, **self.options)

    def gradients(self, op: Any = gated_rela) -> dict[str, Tensor]:
        y = self.call(op)
        grads = torch.autograd.grad(y, list(self.inputs.values()), self.d_y)
        return {"y": y.detach(), **dict(zip(self.inputs, grads, strict=True))}

    def state(self, requires_grad: bool = False) -> RelaState:
        """A random state after up to 5 rows of each sequence; its sums are positive, like sums of phi."""
        batch, dim = len(self.cu_seqlens) - 1, self.inputs["v"].shape[1]
        heads = self.options["num_heads"]
        kernel_size = self.inputs["conv_weight"].shape[1] if "conv_weight" in self.inputs else 1
        kv_state = torch.rand(batch, heads, dim // heads + 1, dim // heads, dtype=self.d_y.dtype)
        history = torch.randn(batch, kernel_size - 1, dim, dtype=self.d_y.dtype)
        position = torch.randint(1, 6, (batch,))
        if "rotary" in self.options:
            longest = int(self.cu_seqlens.diff().max()) + 5
            self.options["rotary"] = rotary_table(longest, dim, dtype=self.d_y.dtype)
        return RelaState(
            kv_state.requires_grad_(requires_grad), history.requires_grad_(requires_grad), position
        )

    def check(self, ratio: float) -> None:
        expected, got = self.gradients(gated_rela_reference), self.gradients()
        for name, value in expected.items():
            assert_close(name, value, got[name], ratio, scale=1.0)


def example() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Operands and other arguments of a small call, for test_support.py."""
    case = Case([3, 0, 4], 8, 2, causal=True)
    q, k = (x.detach().requires_grad_() for x in case.inputs.pop("qk").chunk(2, dim=-1))
    return {"q": q, "k": k, **case.inputs}, {"cu_seqlens": case.cu_seqlens, **case.options}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [[1], [2], [3], [4], [5], [199], [200], [257], UNEVEN])
def test_equals_reference_at_odd_lengths(lengths: list[int], causal: bool, isa: str) -> None:
    Case(lengths, causal=causal).check(1e-11)


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("lengths", [[512, 70], [513, 70]])
def test_long_sequences(lengths: list[int], rotary: bool, isa: str) -> None:
    """The bidirectional backward keeps the keys' features of up to 512 rows, and recomputes them beyond."""
    Case(lengths, 16, 2, causal=False, rotary=rotary).check(1e-11)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dim, num_heads", [(64, h) for h in (1, 2, 4, 8, 16)] + [(2, 1), (12, 2), (40, 2)])
def test_equals_reference_at_every_head_dim(dim: int, num_heads: int, causal: bool, isa: str) -> None:
    Case([67, 5], dim, num_heads, causal=causal).check(1e-11)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("kernel_size", [0, 1, 2, 3, 4, 7])
def test_equals_reference_without_optional_operands(
    causal: bool, rotary: bool, gate: bool, kernel_size: int
) -> None:
    case = Case([70, 2, 1], 16, 2, causal=causal, rotary=rotary, gate=gate, kernel_size=kernel_size)
    case.check(1e-11)


@pytest.mark.parametrize("causal", [True, False])
def test_float32(causal: bool, isa: str) -> None:
    case = Case(UNEVEN, causal=causal, dtype=torch.float32)
    got = case.gradients()
    for name in case.inputs:
        case.inputs[name] = case.inputs[name].detach().double().requires_grad_()
    case.options["rotary"], case.d_y = case.options["rotary"].double(), case.d_y.double()
    for name, value in case.gradients(gated_rela_reference).items():
        assert_close(name, value, got[name], 2e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_q_and_k_side_by_side(causal: bool) -> None:
    case = Case([70, 3], 16, 2, causal=causal)
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
    case = Case(lengths, 8, 2, causal=causal, side_by_side=side_by_side)

    def f(*values: Tensor) -> Tensor:
        return case.call(inputs=dict(zip(case.inputs, values, strict=True)))

    assert torch.autograd.gradcheck(f, list(case.inputs.values()))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_opcheck(causal: bool, full: bool) -> None:
    case = Case([3, 4], 8, 2, causal=causal, rotary=full, gate=full, kernel_size=4 if full else 0)
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
    torch.library.opcheck(torch.ops.recgrela.gated_rela_backward.default, (case.d_y, *d_state, *detached))


@pytest.mark.parametrize("causal", [True, False])
def test_compiles_without_a_graph_break(causal: bool) -> None:
    case = Case([6, 1], 8, 2, causal=causal)

    def f(inputs: dict[str, Tensor]) -> Tensor:
        return case.call(inputs=inputs).square().sum()

    expected = torch.autograd.grad(f(case.inputs), list(case.inputs.values()))
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(case.inputs), list(case.inputs.values()))
    for name, a, b in zip(case.inputs, expected, got, strict=True):
        assert_close(name, a, b, 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_strides_of_operands_and_gradients_do_not_matter(causal: bool) -> None:
    case = Case([17, 4], 16, 2, causal=causal)
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
    case = Case(lengths, 16, 2, causal=causal)
    y = case.call()
    q, k = case.inputs["qk"].chunk(2, dim=-1)
    weights = {name: case.inputs[name] for name in ("conv_weight", "conv_bias")}
    for start, end in zip(case.cu_seqlens[:-1].tolist(), case.cu_seqlens[1:].tolist(), strict=True):
        rows = (x[None, start:end] for x in (q, k, case.inputs["v"], case.inputs["g"]))
        alone = gated_rela(*rows, **weights, **case.options)
        assert torch.equal(alone[0], y[start:end])


def test_causal_rows_attend_to_no_later_row() -> None:
    case = Case([40], 8, 2, causal=True)
    before = case.call()
    changed = {name: x.detach().clone() for name, x in case.inputs.items()}
    for name in ("qk", "v", "g"):
        changed[name][25:] += 1
    assert torch.equal(case.call(inputs=changed)[:25], before[:25])


@pytest.mark.parametrize("causal", [True, False])
def test_bitwise_the_same_for_any_number_of_threads(causal: bool) -> None:
    case = Case([200] * 8 + UNEVEN, causal=causal, dtype=torch.float32)
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
    Case([3, 1, 2] * 700, 4, 1, causal=True, dtype=torch.float64).check(1e-11)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_empty_batches_and_sequences(dtype: torch.dtype) -> None:
    for lengths in ([], [0], [0, 0, 0]):
        case = Case(lengths, 8, 2, causal=True)
        case.cu_seqlens = case.cu_seqlens.to(dtype)
        got = case.gradients()
        assert got["y"].shape == (0, 8)
        assert not got["conv_weight"].any() and not got["conv_bias"].any()


@pytest.mark.parametrize("causal", [True, False])
def test_extreme_operands_stay_finite(causal: bool) -> None:
    case = Case([50, 3], 16, 2, causal=causal, dtype=torch.float32)
    with torch.no_grad():
        for name in ("qk", "v", "g"):
            case.inputs[name] *= 200
    for name, value in case.gradients().items():
        assert value.isfinite().all(), name


def test_nan_spreads_no_further_than_its_sequence() -> None:
    case = Case([4, 5], 8, 2, causal=False)
    with torch.no_grad():
        case.inputs["qk"][2, 0] = float("nan")
    y = case.call()
    assert y[:4].isnan().any() and y[4:].isfinite().all()


def test_autocast_computes_in_float32() -> None:
    case = Case([6, 3], 8, 2, causal=True, dtype=torch.float32)
    half = {name: x.detach().bfloat16().requires_grad_() for name, x in case.inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = case.call(inputs=half)
    assert y.dtype == torch.float32
    single = {name: x.detach().float() for name, x in half.items()}
    assert torch.equal(y, case.call(inputs=single))
    grads = torch.autograd.grad(y, list(half.values()), case.d_y)
    assert all(g.dtype == torch.bfloat16 for g in grads)


def test_second_derivatives_are_refused() -> None:
    case = Case([3], 8, 2, causal=True)
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


@pytest.mark.parametrize("kernel_size", [0, 1, 4])
@pytest.mark.parametrize("lengths", [[1], [2, 70, 0, 3], [130, 64]])
def test_state_equals_reference(lengths: list[int], kernel_size: int, isa: str) -> None:
    """Compares outputs, final state and every gradient, including that of the initial state."""
    case = Case(lengths, 16, 2, causal=True, kernel_size=kernel_size)
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
    case = Case([sum(chunks)], 16, 2, causal=True)
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
    case = Case([5, 2], 8, 2, causal=True, dtype=torch.float32)
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
    case = Case([0, 0], 8, 2, causal=True)
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
    case = Case([3, 2], 8, 2, causal=True, dtype=torch.float32)
    state = change(case.state())
    case.options |= options
    with pytest.raises(error, match=message):
        case.call(lambda *a, **k: gated_rela(*a, **k, initial_state=state))


def test_meta_operands_give_the_shape() -> None:
    x = torch.randn(7, 8, device="meta")
    y = gated_rela(x, x, x, x, torch.tensor([0, 7], device="meta"), num_heads=2, causal=True)
    assert y.device.type == "meta" and y.shape == (7, 8)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("side_by_side", [True, False])
def test_flops(causal: bool, side_by_side: bool) -> None:
    case = Case([3, 4], 16, 2, causal=causal, side_by_side=side_by_side, gate=False, kernel_size=0)
    state = 2 * 7 * 2 * 8 * 8  # k^T v of each head, added up
    normalizer = 2 * 7 * 16 + 2 * 7 * 16  # the sum of keys, counted as multiply-adds, and its product with q
    plain = flops_of(case.call)
    assert plain == state + state + normalizer  # the product of q with the state takes as many
    convolved = Case([3, 4], 16, 2, causal=causal, side_by_side=side_by_side)
    assert flops_of(convolved.call) == plain + 2 * 7 * 16 * 4
