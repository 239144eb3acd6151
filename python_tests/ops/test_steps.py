"""The ops that advance states by one row, in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.ops.step_case import EXAMPLES, VARIANTS, Step, Tensors, rela
from python_tests.support.gpu import needs_gpu
from python_tests.support.tensors import assert_close, flops_of
from recgrela import ops
from recgrela.ops import OPS
from recgrela.ops.rela_block_step import MAX_ROWS

EVERY_OP = pytest.mark.parametrize("name", EXAMPLES)
EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS)
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def check(expected: Tensors, got: Tensors, ratio: float) -> None:
    assert set(expected) == set(got)
    for name, x in expected.items():
        if x.is_floating_point() or x.is_complex():
            assert_close(name, real(x), real(got[name].cpu()), ratio, scale=1.0)
        else:
            assert torch.equal(x, got[name].cpu())


def same(expected: Tensors, got: Tensors) -> bool:
    return all(torch.equal(x, got[name]) for name, x in expected.items())


def test_every_op_in_place_has_an_example() -> None:
    assert set(EXAMPLES) == {name for name, op in OPS.items() if op.in_place}


@EVERY_VARIANT
def test_a_step_equals_a_row_of_the_whole(variant: str, isa: str) -> None:
    step = VARIANTS[variant]()
    check(step.whole(), step.results(), 1e-12)


@EVERY_VARIANT
def test_the_reference_equals_a_row_of_the_whole(variant: str) -> None:
    step = VARIANTS[variant]()
    check(step.whole(), step.reference(), 1e-12)


@EVERY_VARIANT
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(variant: str, dtype: torch.dtype) -> None:
    if "complex" in variant and dtype != torch.float32:
        pytest.skip("no complex half precision")
    step = VARIANTS[variant]().copy(dtype)
    got = step.results()
    assert got["y"].dtype == (torch.complex64 if "complex" in variant else dtype)
    check(step.copy(torch.float64).reference(), got, TOLERANCES[dtype])


@EVERY_OP
def test_many_steps_equal_a_sequence(name: str) -> None:
    """Steps begin from the state that the op of whole sequences returns."""
    step = EXAMPLES[name](3)
    for _ in range(20):
        expected = step.whole()
        check(expected, step.results(), 1e-12)
        step.call()
        step.rows = {n: x if x is None else torch.randn_like(x) for n, x in step.rows.items()}
        if name == "linear_scan_step":
            step.rows["x"] *= 0.1


@EVERY_OP
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_into_one_graph(name: str, dtype: torch.dtype) -> None:
    step = EXAMPLES[name](3).copy(dtype)
    expected = step.results()
    torch.compiler.reset()
    y = torch.compile(step.call, fullgraph=True, backend="aot_eager")()
    check(expected, {"y": y, **step.state}, TOLERANCES[dtype])


@EVERY_OP
def test_exports_with_any_batch(name: str) -> None:
    step, other = EXAMPLES[name](3), EXAMPLES[name](MAX_ROWS + 1)
    other.parameters = step.parameters
    expected = other.results()
    rows = [n for n, x in step.rows.items() if x is not None]

    class Call(torch.nn.Module):
        def forward(self, rows_: list[Tensor], state: Tensors) -> Tensor:
            called = Step(name, step.rows | dict(zip(rows, rows_, strict=True)), step.parameters, state)
            called.options = step.options
            return called.call()

    inputs = [step.rows[n] for n in rows]
    batch = {0: torch.export.Dim("batch", max=4096)}
    shapes = ([batch] * len(rows), dict.fromkeys(step.state, batch))
    with torch.no_grad():
        program = torch.export.export(
            Call(), (inputs, step.copy().state), dynamic_shapes=shapes, strict=False
        ).module()
        y = program([other.rows[n] for n in rows], other.state)
    check(expected, {"y": y, **other.state}, 1e-12)


WITH_KERNELS = pytest.mark.parametrize("name", [name for name in EXAMPLES if OPS[name].kernels])


@WITH_KERNELS
def test_opcheck(name: str) -> None:
    step = EXAMPLES[name](3)
    operator = getattr(torch.ops.recgrela, name).default
    torch.library.opcheck(operator, step.arguments())
    for n, x in list(step.rows.items()):
        if n in ("k", "g", "z"):
            step.rows[n] = None
            if n == "k":
                step.rows["q"] = torch.cat([step.rows["q"], x], dim=1)
    for n in ("bias", "D", "delta_bias", "turns"):
        if n in step.parameters:
            step.parameters[n] = None
    torch.library.opcheck(operator, step.arguments())


@WITH_KERNELS
def test_the_operator_itself(name: str) -> None:
    """It refuses gradients and wrong operands before it changes a state, and tells autograd of changes."""
    step = EXAMPLES[name](3)
    operator, before = getattr(torch.ops.recgrela, name), step.copy()
    arguments = list(step.arguments())
    with pytest.raises(NotImplementedError, match=f"{name}: .* no gradient"):
        operator(arguments[0].clone().requires_grad_(), *arguments[1:])
    for i, x in enumerate(arguments):
        if isinstance(x, Tensor):
            wrong = [x[..., :-1]] if x.dim() > 1 else []
            for bad in (*wrong, x.half() if x.is_floating_point() else x.double()):
                with pytest.raises(RuntimeError, match=r"must (have the shape|divide)"):
                    operator(*arguments[:i], bad, *arguments[i + 1 :])
    for i, operand in enumerate(operator.default._schema.arguments):
        if str(operand.type) == "Tensor":
            # The operand that sets the dtype is read before it can be named.
            message = (
                None if operand.name in ("x", "u", "v") else f"{operand.name} must be a tensor, not None"
            )
            with pytest.raises(RuntimeError, match=message):
                operator(*arguments[:i], None, *arguments[i + 1 :])
    assert same(before.state, step.state)
    versions = [x._version for x in step.state.values()]
    operator(*arguments)
    assert all(x._version > version for x, version in zip(step.state.values(), versions, strict=True))


@WITH_KERNELS
def test_flops(name: str) -> None:
    step = EXAMPLES[name](3)
    found = flops_of(step.call)
    assert (
        found
        == {
            "causal_conv1d_step": 2 * 3 * 24 * 4,
            "selective_scan_step": 3 * 24 * (9 * 16 + 2),
            "gated_rela_step": 3 * 24 * (4 * 8 + 4 + 2 * 4),
            "rela_block_step": 3 * 24 * (4 * 8 + 4 + 2 * 4 + 2 * (5 * 24 + 2 * 40)),
        }[name]
    )


@EVERY_OP
def test_in_inference_mode(name: str) -> None:
    step = EXAMPLES[name](3)
    expected = step.results()
    with torch.inference_mode():
        assert same(expected, step.results())  # copies are inference tensors
        y = step.call()
    assert same(expected, {"y": y, **step.state})


@EVERY_OP
def test_gradients_are_refused(name: str) -> None:
    step = EXAMPLES[name](3)
    expected = step.results()
    for operands in (step.rows, step.parameters, step.state):
        for n, x in operands.items():
            if x is None or not x.is_floating_point():
                continue
            operands[n] = x.clone().requires_grad_()
            with pytest.raises(NotImplementedError, match=f"{name}: .* no gradient; .* with initial_"):
                step.call()
            if operands is not step.state:
                with torch.no_grad():
                    assert same(expected, step.results())
            operands[n] = x


@EVERY_OP
def test_a_tensor_saved_for_a_gradient_is_not_changed_unnoticed(name: str) -> None:
    step = EXAMPLES[name](3)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    products = [weight * x for x in step.state.values() if x.is_floating_point()]
    step.call()
    for product in products:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()


@EVERY_OP
def test_strides_do_not_matter(name: str) -> None:
    step = EXAMPLES[name](4)
    expected = step.results()

    def columns(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.repeat_interleave(2, dim=-1)[..., ::2]

    def parts(x: Tensor) -> Tensor:
        """The first of two parts of each sequence, as in a tensor with the states of two layers."""
        return torch.stack([x, x], dim=1)[:, 0]

    for other in (columns, lambda x: None if x is None else parts(x)):
        rows = {n: other(x) for n, x in step.rows.items()}
        parameters = {n: columns(x) for n, x in step.parameters.items()}
        state = {n: parts(x) for n, x in step.state.items()}
        y = Step(name, rows, parameters, state, step.options).call()
        check(expected, {"y": y, **state}, 1e-14)


@EVERY_OP
def test_states_that_cannot_be_updated_are_refused(name: str) -> None:
    step = EXAMPLES[name](4)
    for n, x in list(step.state.items()):
        if n != "position":
            step.state[n] = x.mT.contiguous().mT
            with pytest.raises(ValueError, match=f"{n} must be contiguous but for its first dimension"):
                step.call()
        step.state[n] = x[:1].expand(4, *x.shape[1:])
        with pytest.raises(ValueError, match=f"{n} has parts that overlap"):
            step.call()
        step.state[n] = x


@EVERY_OP
def test_empty_batches(name: str) -> None:
    step = EXAMPLES[name](0)
    check(step.whole(), step.results(), 0)


@EVERY_OP
def test_autocast(name: str) -> None:
    """On the CPU rows become float32; the history keeps its dtype."""
    step = EXAMPLES[name](3).copy(torch.bfloat16)
    expected = step.copy(torch.float32).results()
    with torch.autocast("cpu", torch.bfloat16):
        got = step.results()
    assert got["y"].dtype == torch.float32
    for n, x in step.state.items():
        assert got[n].dtype == x.dtype
    check(expected, got, 1e-2)


@EVERY_OP
def test_same_bits_with_any_number_of_threads(name: str) -> None:
    step = EXAMPLES[name](700).copy(torch.float32)
    threads, runs = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        runs.append(step.results())
    torch.set_num_threads(threads)
    assert same(*runs)


@pytest.mark.parametrize("position", [2**31 + 5, 2**40 + 3])
def test_gated_rela_far_beyond_tables(position: int) -> None:
    """A query attends to its own key, which is at the same angle: the result does not depend on it."""
    step = rela(2)
    step.state["kv_state"].zero_()
    step.state["position"].fill_(0)
    near = step.results()
    step.state["position"].fill_(position)
    step.options["eps"] = 0.0
    far = step.results()
    del step.options["eps"]
    shortcut = ops.causal_conv1d_step(
        step.rows["v"],
        step.parameters["conv_weight"],
        step.parameters["conv_bias"],
        step.state["history"].clone(),
    )
    gate = torch.nn.functional.silu(step.rows["g"])
    expected, got = (near["y"] / gate - shortcut), (far["y"] / gate - shortcut)
    assert_close("o", expected, got, 1e-4)


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("causal_conv1d_step", {"x": torch.randn(24)}, ValueError, r"x must be \[B, C\]"),
    ("causal_conv1d_step", {"activation": "relu"}, ValueError, "activation must be 'silu' or None"),
    ("causal_conv1d_step", {"history": torch.randn(3, 2, 24)}, ValueError, r"history must be \[3, 3, 24\]"),
    (
        "causal_conv1d_step",
        {"history": torch.randn(3, 3, 24).double()},
        TypeError,
        "history is torch.float64",
    ),
    ("causal_conv1d_step", {"weight": torch.randn(24)}, ValueError, r"weight must be \[24, K\]"),
    ("linear_scan_step", {"x": torch.randn(24)}, ValueError, r"x must be \[B, C\]"),
    ("linear_scan_step", {"a": torch.randn(23)}, ValueError, r"a must be \[24\]"),
    ("linear_scan_step", {"state": torch.randn(2, 24)}, ValueError, r"state must be \[3, 24\]"),
    ("linear_scan_step", {"state": torch.randn(3, 24).half()}, TypeError, "state is torch.float16"),
    ("selective_scan_step", {"u": torch.randn(24)}, ValueError, r"u must be \[M, I\]"),
    ("selective_scan_step", {"A": torch.randn(24)}, ValueError, "with at least one state"),
    ("selective_scan_step", {"B": torch.randn(3, 15)}, ValueError, r"B must be \[3, 16\]"),
    ("selective_scan_step", {"state": torch.randn(3, 24, 15)}, ValueError, r"state must be \[3, 24, 16\]"),
    ("gated_rela_step", {"v": torch.randn(24)}, ValueError, r"v must be \[B, D\]"),
    ("gated_rela_step", {"num_heads": 5}, ValueError, "num_heads=5 must divide the width 24"),
    ("gated_rela_step", {"q": torch.randn(3, 48)}, ValueError, r"q must be \[3, 24\]"),
    ("gated_rela_step", {"k": None}, ValueError, r"q must be \[3, 48\]"),
    ("gated_rela_step", {"turns": torch.randn(12)}, TypeError, "turns is torch.float32"),
    ("gated_rela_step", {"turns": torch.arange(11)}, ValueError, r"turns must be \[12\]"),
    ("gated_rela_step", {"conv_bias": None}, ValueError, "conv_weight and conv_bias go together"),
    (
        "gated_rela_step",
        {"kv_state": torch.randn(3, 3, 8, 8)},
        ValueError,
        r"kv_state must be \[3, 3, 9, 8\]",
    ),
    ("gated_rela_step", {"history": None}, ValueError, "state lacks one of kv_state, history, position"),
    ("gated_rela_step", {"position": torch.zeros(3)}, TypeError, "position is torch.float32"),
    ("rela_block_step", {"x": torch.randn(24)}, ValueError, r"x must be \[B, D\] and w1 \[F, D\]"),
    ("rela_block_step", {"w1": torch.randn(0, 24)}, ValueError, "with widths above 0"),
    ("rela_block_step", {"activation": "tanh"}, ValueError, "activation must be one of none, relu"),
    ("rela_block_step", {"gate_bias": None}, ValueError, "gate_weight and gate_bias go together"),
    ("rela_block_step", {"qk_weight": torch.randn(24, 24)}, ValueError, r"qk_weight must be \[48, 24\]"),
    ("rela_block_step", {"w2": torch.randn(24, 24)}, ValueError, r"w2 must be \[24, 40\]"),
    ("rela_block_step", {"b1": torch.randn(40).double()}, TypeError, "b1 is torch.float64"),
    ("rela_block_step", {"b2": None}, TypeError, "b2 must be a tensor, got None"),
    ("rela_block_step", {"num_heads": 5}, ValueError, "num_heads=5 must divide the width 24"),
    ("rela_block_step", {"history": None}, ValueError, "state lacks one of kv_state, history, position"),
]


@pytest.mark.parametrize("name, change, error, message", BAD)
def test_bad_input(name: str, change: dict[str, Any], error: type[Exception], message: str) -> None:
    step = EXAMPLES[name](3).copy(torch.float32)
    for key, value in change.items():
        for operands in (step.rows, step.parameters, step.state, step.options):
            if key in operands:
                operands[key] = value
    with pytest.raises(error, match=f"{name}: .*{message}"):
        step.call()


# On a GPU


@needs_gpu
@EVERY_VARIANT
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cuda_equals_the_reference(variant: str, dtype: torch.dtype) -> None:
    if "complex" in variant and dtype != torch.float32:
        pytest.skip("no complex half precision")
    step = VARIANTS[variant]().copy(dtype)
    check(step.copy(torch.float64).reference(), step.copy(device="cuda").results(), TOLERANCES[dtype])


@needs_gpu
@EVERY_OP
def test_cuda_graphs_capture_steps(name: str) -> None:
    step = EXAMPLES[name](5).copy(torch.float32)
    captured, expected = step.copy(device="cuda"), step.copy(device="cuda")
    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        captured.results()  # a warm-up that leaves the state as it is
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            y = captured.call()
        for _ in range(3):
            graph.replay()
    torch.cuda.synchronize()
    for _ in range(3):
        want = expected.call()
    assert same({"y": want, **expected.state}, {"y": y, **captured.state})
