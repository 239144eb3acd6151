from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from python_tests.support.tensors import assert_close, flops_of
from recgrela.ops import linear_cross_entropy, linear_cross_entropy_reference
from recgrela.ops.linear_cross_entropy import OP, _by_chunks, unit_gradient


def operands(rows: int, n_items: int, dim: int = 8, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    hidden = torch.randn(rows, dim, dtype=dtype).requires_grad_()
    weight = torch.randn(n_items, dim, dtype=dtype).requires_grad_()
    return [hidden, weight, torch.randint(n_items, (rows,))]


def with_bias(
    rows: int, n_items: int, dim: int = 8, dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    return [*operands(rows, n_items, dim, dtype), torch.randn(n_items, dtype=dtype).requires_grad_()]


def example() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Operands and other arguments of a small call, for test_support.py."""
    hidden, weight, target, bias = with_bias(20, 17)
    return {"hidden": hidden, "weight": weight, "bias": bias}, {"target": target, "label_smoothing": 0.1}


def check(
    rows: int, n_items: int, dim: int, max_logits: int, bias: bool = True, label_smoothing: float = 0.1
) -> None:
    x = with_bias(rows, n_items, dim) if bias else operands(rows, n_items, dim)
    expected = linear_cross_entropy_reference(*x, label_smoothing=label_smoothing)
    got = linear_cross_entropy(*x, label_smoothing=label_smoothing, max_logits=max_logits)
    scale = 1.0 if n_items == 1 else 0.0  # the loss and the gradients of a single item are 0
    assert_close("loss", expected, got, 1e-13, scale)
    differentiable = [t for t in x if t.requires_grad]
    for name, a, b in zip(
        ("hidden", "weight", "bias"),
        torch.autograd.grad(3 * expected, differentiable),
        torch.autograd.grad(3 * got, differentiable),
        strict=False,
    ):
        assert_close(name, a, b, 1e-12, scale)


# Limits for all scores, for some rows and all items, and for some rows and items.
MAX_LOGITS = [1 << 21, 30_000, 1]


@pytest.mark.parametrize("rows", [1, 5, 47, 48, 100, 300])
@pytest.mark.parametrize("max_logits", MAX_LOGITS)
def test_equals_reference_at_any_number_of_rows(rows: int, max_logits: int, isa: str) -> None:
    check(rows, 500, 8, max_logits)


@pytest.mark.parametrize("n_items", [1, 2, 15, 16, 17, 64, 255, 257, 3417])
@pytest.mark.parametrize("max_logits", MAX_LOGITS)
def test_equals_reference_at_any_number_of_items(n_items: int, max_logits: int, isa: str) -> None:
    check(70, n_items, 8, max_logits)


@pytest.mark.parametrize("dim", [1, 3, 16, 50, 64, 100])
@pytest.mark.parametrize("max_logits", MAX_LOGITS)
def test_equals_reference_at_any_width(dim: int, max_logits: int, isa: str) -> None:
    check(60, 300, dim, max_logits)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("max_logits", MAX_LOGITS)
def test_bias_and_label_smoothing(max_logits: int, label_smoothing: float, bias: bool, isa: str) -> None:
    check(70, 300, 8, max_logits, bias, label_smoothing)


@pytest.mark.parametrize("max_logits", MAX_LOGITS)
def test_float32(max_logits: int, isa: str) -> None:
    hidden, weight, target = operands(300, 1000, 64)
    narrow = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    expected = linear_cross_entropy_reference(hidden, weight, target)
    got = linear_cross_entropy(*narrow, target, max_logits=max_logits)
    assert_close("loss", expected, got, 1e-6)
    grads = (torch.autograd.grad(expected, [hidden, weight]), torch.autograd.grad(got, narrow))
    for name, a, b in zip(("hidden", "weight"), *grads, strict=True):
        assert_close(name, a, b, 1e-5)


def test_the_number_of_threads_does_not_matter() -> None:
    hidden, weight, target = operands(500, 700, 16, torch.float32)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        loss = linear_cross_entropy(hidden, weight, target, max_logits=100_000)
        results.append([loss, *torch.autograd.grad(loss, [hidden, weight])])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_strides_do_not_matter() -> None:
    hidden, weight, target = operands(60, 90)
    expected = torch.autograd.grad(linear_cross_entropy(hidden, weight, target), [hidden, weight])
    for strided in (
        [x.detach().T.contiguous().T.requires_grad_() for x in (hidden, weight)],
        [torch.cat((x.detach(), x.detach()), 1)[:, :8].requires_grad_() for x in (hidden, weight)],
    ):
        loss = linear_cross_entropy(*strided, target.repeat_interleave(2)[::2])
        got = torch.autograd.grad(loss, strided)
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_memory_is_bounded() -> None:
    """100,000 items and 4,096 rows: 1.6 GB of scores, of which the op may hold 4 MB besides its results."""
    code = """
import resource, torch
from recgrela.ops import linear_cross_entropy
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
hidden, weight = torch.randn(4096, 16).requires_grad_(), torch.randn(100_000, 16).requires_grad_()
target = torch.randint(100_000, (4096,))
linear_cross_entropy(hidden[:64], weight[:64], target[:64] % 64).backward()
before = peak()
linear_cross_entropy(hidden, weight, target).backward()
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_gradient_of_the_table_is_made_once(scale: float) -> None:
    """A million items: the backward makes no copy of the table's gradient if d_loss is 1, else one."""
    code = f"""
import resource, torch
from recgrela.ops import linear_cross_entropy
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
hidden, weight = torch.randn(48, 64).requires_grad_(), torch.randn(1_000_000, 64).requires_grad_()
loss = linear_cross_entropy(hidden, weight, torch.randint(1_000_000, (48,)))
before = peak()
(loss * {scale}).backward()
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    table = 1_000_000 * 64 * 4 / 2**20
    assert float(done.stdout) < (0.3 if scale == 1 else 1.3) * table


def test_the_backward_can_be_repeated() -> None:
    hidden, weight, target = operands(30, 40)
    loss = linear_cross_entropy(hidden, weight, target)
    loss.backward(retain_graph=True)
    first = weight.grad.clone()
    loss.backward()
    assert torch.equal(weight.grad, 2 * first)


@pytest.mark.parametrize("max_logits", MAX_LOGITS)
def test_nan_propagates(max_logits: int) -> None:
    for bad in (float("nan"), float("inf")):
        hidden, weight, target = operands(30, 40)
        with torch.no_grad():
            hidden[3, 2] = bad
        assert not linear_cross_entropy(hidden, weight, target, max_logits=max_logits).isfinite()


@pytest.mark.parametrize("operator", ["linear_cross_entropy", "linear_cross_entropy_by_chunks"])
def test_opcheck(operator: str) -> None:
    for asked in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
        hidden, weight, target, bias = with_bias(30, 40)
        for x, wanted in zip((hidden, weight, bias), asked, strict=True):
            x.requires_grad_(wanted)
        torch.library.opcheck(
            getattr(torch.ops.recgrela, operator).default,
            (hidden, weight, target, bias, hidden.dtype, 0.2, 1000, *asked),
        )
    none_asked = (*operands(30, 40), None, torch.float64, 0.0, 1000, False, False, False)
    with torch.no_grad():
        torch.library.opcheck(getattr(torch.ops.recgrela, operator).default, none_asked)


def test_opcheck_of_the_backward() -> None:
    hidden, weight, target, bias = (x.detach() for x in with_bias(30, 40))
    saved = torch.ops.recgrela.linear_cross_entropy(
        hidden, weight, target, bias, hidden.dtype, 0.0, 1000, True, True, False
    )
    d_loss = torch.tensor(3.0, dtype=torch.float64)
    torch.library.opcheck(
        torch.ops.recgrela.linear_cross_entropy_backward.default,
        (d_loss, *saved[1:]),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_gradcheck(label_smoothing: float) -> None:
    hidden, weight, target, bias = with_bias(5, 7, 4)
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_cross_entropy(h, w, target, b, label_smoothing=label_smoothing, max_logits=14),
        (hidden, weight, bias),
    )


@pytest.mark.parametrize("operator", ["linear_cross_entropy", "linear_cross_entropy_by_chunks"])
def test_a_unit_gradient_is_not_multiplied(operator: str) -> None:
    leaves = (hidden, weight, _, bias) = with_bias(30, 40, dtype=torch.float32)
    inputs, unit = (hidden, weight, bias), unit_gradient(hidden.device)
    options = (hidden.dtype, 0.0, 1000, True, True, True)
    loss = getattr(torch.ops.recgrela, operator)(*leaves, *options)[0]
    expected = torch.autograd.grad(loss, inputs, torch.ones(()), retain_graph=True)
    tripled = torch.autograd.grad(loss * 3, inputs, unit, retain_graph=True)
    unread = torch.autograd.grad(loss, inputs, unit.fill_(2))  # a value that it never has
    for a, b, c in zip(expected, tripled, unread, strict=True):
        assert torch.equal(3 * a, b) and torch.equal(a, c)


def test_large_scores_do_not_overflow() -> None:
    hidden, weight, target = operands(6, 9, dtype=torch.float32)
    loss = linear_cross_entropy(hidden * 1e4, weight, target)
    assert_close("loss", linear_cross_entropy_reference(hidden * 1e4, weight, target), loss, 1e-6)


def test_half_precision_is_summed_in_float32() -> None:
    hidden, weight, target = operands(300, 50, 16, torch.float32)
    expected = linear_cross_entropy_reference(hidden, weight, target)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, target, max_logits=1000)
    assert loss.dtype == torch.float32
    assert_close("loss", expected, loss, 1e-6)
    half = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
    loss = linear_cross_entropy(*half, target)
    assert loss.dtype == torch.float32
    assert_close("loss", expected, loss, 1e-2)
    grads = (torch.autograd.grad(expected, [hidden, weight]), torch.autograd.grad(loss, half))
    for a, b in zip(*grads, strict=True):
        assert b.dtype == torch.bfloat16
        assert_close("gradient", a, b, 2e-2)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("max_logits", [1, 700, 1 << 21])
def test_the_form_for_other_devices(
    max_logits: int, label_smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(OP.kernels, "cpu")
    check(100, 17, 8, max_logits, True, label_smoothing)


def test_the_form_for_other_devices_sums_half_precision_in_float32() -> None:
    hidden, weight, target = operands(100, 17)
    half = [hidden.detach().bfloat16(), weight.detach().bfloat16().float()]
    loss, *grads, _ = _by_chunks(*half, target, None, torch.bfloat16, 0.0, 200, True, True, False)
    double = [x.double().requires_grad_() for x in half]
    expected = linear_cross_entropy_reference(*double, target)
    assert loss.dtype == torch.float32 and [x.dtype for x in grads] == [torch.bfloat16, torch.float32]
    assert_close("loss", expected, loss, 1e-6)  # the scores are not rounded to bfloat16
    for a, b in zip(torch.autograd.grad(expected, double), grads, strict=True):
        assert_close("gradient", a, b, 1e-2)


def test_float16_rows_have_float32_gradients_until_the_loss_is_scaled() -> None:
    hidden, weight, target = operands(512, 40)
    half, small = hidden.detach().half().requires_grad_(), (weight.detach() * 1e-4).float()
    args = (half, small, target, None, torch.float16, 0.0, 1 << 20, True, False, False)
    loss = torch.ops.recgrela.linear_cross_entropy_by_chunks(*args)[0]
    (grad,) = torch.autograd.grad(loss * 2**12, half)
    double = half.detach().double().requires_grad_()
    expected = linear_cross_entropy_reference(double, small.half().double(), target) * 2**12
    assert grad.dtype == torch.float16
    assert_close("d_hidden", torch.autograd.grad(expected, double)[0], grad, 1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_form_for_other_devices_rounds_float32_rows(dtype: torch.dtype) -> None:
    hidden, weight, target = (x.detach() for x in operands(100, 17))
    rounded, options = hidden.to(dtype), (weight.float(), target, None, dtype, 0.1, 200, True, True, False)
    loss, d_hidden, *others = _by_chunks(rounded.float(), *options)
    expected, d_rounded, *expected_others = _by_chunks(rounded, *options)
    assert torch.equal(loss, expected) and all(map(torch.equal, others, expected_others))
    assert d_hidden.dtype == torch.float32 and torch.equal(d_hidden.to(d_rounded.dtype), d_rounded)


def test_the_operator_refuses_other_dtypes_of_products() -> None:
    hidden, weight, target = (x.detach() for x in operands(30, 40))
    options = (0.0, 1000, False, False, False)
    with pytest.raises(RuntimeError, match="dtype must be that of hidden, or half precision if hidden is"):
        torch.ops.recgrela.linear_cross_entropy(hidden, weight, target, None, torch.float16, *options)
    narrow = (hidden.float(), weight.float(), target, None, torch.bfloat16)
    with pytest.raises(RuntimeError, match="the CPU kernels compute in the dtype of hidden"):
        torch.ops.recgrela.linear_cross_entropy(*narrow, *options)


def test_a_float32_table_with_half_rows() -> None:
    hidden, weight, target, bias = with_bias(100, 17, dtype=torch.float32)
    rows = hidden.detach().bfloat16().requires_grad_()
    expected = linear_cross_entropy_reference(rows.float(), weight, target, bias)
    loss = linear_cross_entropy(rows, weight, target, bias)
    assert loss.dtype == torch.float32
    assert_close("loss", expected, loss, 1e-6)
    grads = [torch.autograd.grad(x, [rows, weight, bias]) for x in (expected, loss)]
    assert [x.dtype for x in grads[1]] == [torch.bfloat16, torch.float32, torch.float32]
    for a, b in zip(*grads, strict=True):
        assert_close("gradient", a, b, 1e-2)


def test_float64_stays_float64_under_autocast() -> None:
    hidden, weight, target = operands(30, 9)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, target)
    assert_close("loss", linear_cross_entropy_reference(hidden, weight, target), loss, 1e-13)


def test_only_the_gradients_asked_for() -> None:
    x = with_bias(20, 9)
    differentiable = [0, 1, 3]
    every = torch.autograd.grad(linear_cross_entropy(*x), [x[i] for i in differentiable])
    for i, expected in zip(differentiable, every, strict=True):
        some = [t if j == i else t.detach() for j, t in enumerate(x)]
        (alone,) = torch.autograd.grad(linear_cross_entropy(*some), some[i])
        assert torch.equal(alone, expected)
    with torch.no_grad():
        assert not linear_cross_entropy(*x).requires_grad


def test_second_derivatives_are_refused() -> None:
    hidden, weight, target = operands(4, 9)
    loss = linear_cross_entropy(hidden, weight, target)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_compiles_without_a_graph_break() -> None:
    hidden, weight, target, bias = with_bias(40, 9)

    def f(*x: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(x[0], x[1], target, x[2], label_smoothing=0.1, max_logits=90)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    x = [hidden, weight, bias]
    for a, b in zip(torch.autograd.grad(f(*x), x), torch.autograd.grad(compiled(*x), x), strict=True):
        assert_close("gradient", a, b, 1e-12)


def test_bad_input() -> None:
    hidden, weight, target = operands(5, 7)
    for args, message in [
        ((hidden, weight[:, :3], target), r"weight must be \[n_items, 8\]"),
        ((hidden, weight, target[:4]), r"target must be \[5\]"),
        ((hidden, weight, target, torch.zeros(6)), r"bias must be \[7\]"),
        ((hidden[:0], weight, target[:0]), "neither empty"),
        ((hidden, weight[:0], target), "neither empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            linear_cross_entropy(*args)
    with pytest.raises(ValueError, match=r"label_smoothing must be within 0 \.\. 1, got 1.5"):
        linear_cross_entropy(hidden, weight, target, label_smoothing=1.5)
    with pytest.raises(ValueError, match="max_logits"):
        linear_cross_entropy(hidden, weight, target, max_logits=0)
    with pytest.raises(TypeError, match=r"weight is torch\.float32"):
        linear_cross_entropy(hidden, weight.float(), target)
    with pytest.raises(TypeError, match=r"bias is torch\.float32, weight is torch\.float64"):
        linear_cross_entropy(hidden, weight, target, torch.zeros(7))
    with pytest.raises(TypeError, match="int64"):
        linear_cross_entropy(hidden, weight, target.int())
    for bad in (target + 7, target - 100):
        with pytest.raises(RuntimeError, match="out of bounds"):
            linear_cross_entropy(hidden, weight, bad)


def test_flops_with_gradients() -> None:
    hidden, weight, target = operands(7, 30, 16)
    once = 2 * 7 * 16 * 30
    assert flops_of(lambda: linear_cross_entropy(hidden, weight, target)) == 3 * once
    assert flops_of(lambda: linear_cross_entropy(hidden.detach(), weight, target)) == 2 * once
    assert flops_of(lambda: linear_cross_entropy(hidden.detach(), weight.detach(), target)) == once
