from __future__ import annotations

import pytest
import torch
from support import assert_close

from recgrela.ops import linear_cross_entropy, linear_cross_entropy_reference


def operands(rows: int, n_items: int, dim: int = 8, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    hidden = torch.randn(rows, dim, dtype=dtype).requires_grad_()
    weight = torch.randn(n_items, dim, dtype=dtype).requires_grad_()
    return [hidden, weight, torch.randint(n_items, (rows,))]


@pytest.mark.parametrize("rows", [1, 5, 64, 100])
@pytest.mark.parametrize("max_logits", [1, 170, 1 << 21])
def test_equals_reference(rows: int, max_logits: int, poisoned_memory: None) -> None:
    hidden, weight, target = operands(rows, 17)
    expected = linear_cross_entropy_reference(hidden, weight, target)
    got = linear_cross_entropy(hidden, weight, target, max_logits=max_logits)
    assert_close("loss", expected, got, 1e-13)
    for name, a, b in zip(
        ("hidden", "weight"),
        torch.autograd.grad(3 * expected, [hidden, weight]),
        torch.autograd.grad(3 * got, [hidden, weight]),
        strict=True,
    ):
        assert_close(name, a, b, 1e-12)


def test_gradcheck() -> None:
    hidden, weight, target = operands(5, 7, 4)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, target, max_logits=14), (hidden, weight)
    )


def test_large_scores_do_not_overflow() -> None:
    hidden, weight, target = operands(6, 9, dtype=torch.float32)
    loss = linear_cross_entropy(hidden * 1e4, weight, target)
    assert_close("loss", linear_cross_entropy_reference(hidden * 1e4, weight, target), loss, 1e-6)


def test_autocast_scores_in_bfloat16_and_sums_in_float32() -> None:
    hidden, weight, target = operands(300, 50, 16, torch.float32)
    expected = linear_cross_entropy_reference(hidden, weight, target)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, target, max_logits=1000)
    assert loss.dtype == torch.float32
    assert_close("loss", expected, loss, 2e-3)
    for a, b in zip(
        torch.autograd.grad(expected, [hidden, weight]),
        torch.autograd.grad(loss, [hidden, weight]),
        strict=True,
    ):
        assert b.dtype == torch.float32
        assert_close("gradient", a, b, 2e-2)


def test_float64_stays_float64_under_autocast() -> None:
    hidden, weight, target = operands(30, 9)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, target)
    assert_close("loss", linear_cross_entropy_reference(hidden, weight, target), loss, 1e-13)


def test_only_the_gradients_asked_for() -> None:
    hidden, weight, target = operands(20, 9)
    both = torch.autograd.grad(linear_cross_entropy(hidden, weight, target), [hidden, weight])
    (alone,) = torch.autograd.grad(linear_cross_entropy(hidden, weight.detach(), target), [hidden])
    assert torch.equal(alone, both[0])
    (alone,) = torch.autograd.grad(linear_cross_entropy(hidden.detach(), weight, target), [weight])
    assert torch.equal(alone, both[1])
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, target).requires_grad


def test_second_derivatives_are_refused() -> None:
    hidden, weight, target = operands(4, 9)
    loss = linear_cross_entropy(hidden, weight, target)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_compiles_without_a_graph_break() -> None:
    hidden, weight, target = operands(40, 9)

    def f(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(hidden, weight, target, max_logits=90)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        torch.autograd.grad(f(hidden, weight), [hidden, weight]),
        torch.autograd.grad(compiled(hidden, weight), [hidden, weight]),
        strict=True,
    ):
        assert_close("gradient", a, b, 1e-12)


def test_bad_input() -> None:
    hidden, weight, target = operands(5, 7)
    for args, message in [
        ((hidden, weight[:, :3], target), r"weight must be \[n_items, 8\]"),
        ((hidden, weight, target[:4]), r"target must be \[5\]"),
        ((hidden[:0], weight, target[:0]), "none of them empty"),
        ((hidden, weight[:0], target), "none of them empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            linear_cross_entropy(*args)
    with pytest.raises(ValueError, match="max_logits"):
        linear_cross_entropy(hidden, weight, target, max_logits=0)
    with pytest.raises(TypeError, match=r"weight is torch\.float32"):
        linear_cross_entropy(hidden, weight.float(), target)
    with pytest.raises(TypeError, match="int64"):
        linear_cross_entropy(hidden, weight, target.int())
    for bad in (target + 7, target - 100):
        with pytest.raises(RuntimeError, match="out of bounds"):
            linear_cross_entropy(hidden, weight, bad)
