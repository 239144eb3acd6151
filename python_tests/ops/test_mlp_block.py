from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from python_tests.support.tensors import assert_close
from recgrela.ops import add_norm, mlp, mlp_block, mlp_block_reference, support
from recgrela.ops.mlp_block import has_kernel

NAMES = ("x", "z", "norm_weight", "norm_bias", "w1", "b1", "w2", "b2")
FLOAT32 = ("x", *NAMES[2:])
SEED = torch.tensor([123456789012345, 987654321098765, -135])
HALF = (torch.float16, torch.bfloat16)


def operands(rows: int, width: int, hidden: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = [(rows, width), (rows, width), (width,), (width,), (hidden, width), (hidden,), (width, hidden)]
    scales = [1.0, 1.0, 1.0, 1.0, width**-0.5, 1.0, hidden**-0.5, 1.0]
    return [
        ((torch.randn(*shape, dtype=dtype) + 0.1) * scale).requires_grad_()
        for shape, scale in zip([*shapes, (width,)], scales, strict=True)
    ]


def example() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Operands and other arguments of a small call, for test_support.py."""
    others = {"dropout": 0.2, "drop_path": 0.3, "sequence": torch.tensor([0, 0, 1, 1, 1]), "seed": SEED}
    return dict(zip(NAMES, operands(5, 32, 40), strict=True)), others


def results(function: Any, inputs: list[Any], **kw: Any) -> list[Tensor]:
    y = function(*inputs, **kw)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [y.detach(), *torch.autograd.grad(y, [t for t in inputs if t is not None], upstream.to(y.dtype))]


def check(inputs: list[Any], ratio: float = 1e-11, **kw: Any) -> None:
    expected, got = results(mlp_block_reference, inputs, **kw), results(mlp_block, inputs, **kw)
    for i, pair in enumerate(zip(expected, got, strict=True)):
        assert_close(f"result {i}", *pair, ratio, scale=1.0)


@pytest.mark.parametrize("rows", [0, 1, 5, 47, 200])
@pytest.mark.parametrize("absent", [False, True])
def test_equals_reference_at_any_number_of_rows(rows: int, absent: bool) -> None:
    inputs: list[Any] = operands(rows, 32, 48)
    if absent:
        inputs[1] = None
    for sequence in (None, torch.arange(rows) // 3):
        check(inputs, dropout=0.2, drop_path=0.4, sequence=sequence, seed=SEED)


@pytest.mark.parametrize("width, hidden", [(1, 1), (7, 9), (48, 100), (64, 256), (100, 30)])
@pytest.mark.parametrize("rates", [{}, {"dropout": 0.3}, {"drop_path": 0.3}])
def test_equals_reference_at_any_width(width: int, hidden: int, rates: dict[str, float]) -> None:
    check(operands(30, width, hidden), eps=1e-5, seed=SEED if rates else None, **rates)


@pytest.mark.parametrize("activation", ["none", "relu", "silu", "gelu"])
def test_activations(activation: str) -> None:
    check(operands(20, 8, 20), activation=activation)


def test_is_a_norm_a_network_and_a_sum() -> None:
    """In plain PyTorch, and by the ops, which draw the same elements."""
    x, z, gamma, beta, *weights = operands(20, 32, 64)
    w1, b1, w2, b2 = weights
    s = x + z
    h = F.gelu(F.linear(F.layer_norm(s, (32,), gamma, beta, 1e-12), w1, b1))
    assert_close("y", s + F.linear(h, w2, b2), mlp_block(x, z, gamma, beta, *weights), 1e-12)
    kw: dict[str, Any] = {"drop_path": 0.4, "sequence": torch.arange(20) // 4}
    s, normed = add_norm(x, z, gamma, beta, seed=SEED[[1, 0]], **kw)
    expected = s + mlp(normed, *weights, dropout=0.3, seed=SEED[1:])
    got = mlp_block(x, z, gamma, beta, *weights, dropout=0.3, seed=SEED, **kw)
    assert torch.equal(expected, got)
    dropped = [mlp_block(x, z, gamma, beta, *weights, dropout=0.3, drop_path=0.4) for _ in range(2)]
    assert not torch.equal(*dropped)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_rows_and_float32_parameters(dtype: torch.dtype) -> None:
    x, z, *parameters = operands(20, 32, 64, torch.float32)
    half = z.detach().to(dtype).requires_grad_()
    inputs = [x, half, *parameters]
    expected = results(mlp_block_reference, [t.detach().double().requires_grad_() for t in inputs])
    got = results(mlp_block, inputs)
    assert [t.dtype for t in got] == [torch.float32, torch.float32, dtype, *[torch.float32] * 6]
    for i, pair in enumerate(zip(expected, got, strict=True)):
        assert_close(f"result {i}", *pair, 3e-2, scale=1.0)
    rounded = [p.detach().to(dtype).requires_grad_() for p in parameters]
    assert {t.dtype for t in results(mlp_block, [x, half, *rounded])[3:]} == {dtype}
    y = mlp_block(half, None, *parameters)
    assert y.dtype == torch.float32
    assert torch.equal(y, half.float() + mlp(add_norm(half, None, *parameters[:2])[1], *parameters[2:]))


@pytest.mark.parametrize("absent", [False, True])
def test_autocast(absent: bool) -> None:
    x, z, gamma, beta, *weights = operands(9, 32, 64, torch.float32)
    branch = None if absent else z
    with torch.autocast("cpu", torch.bfloat16):
        y = mlp_block(x, branch, gamma, beta, *weights)
        s, normed = add_norm(x, branch, gamma, beta)
        expected = s + mlp(normed, *weights)
    assert y.dtype == torch.float32 and torch.equal(expected, y)
    double = [t.detach().double() for t in (x, z, gamma, beta, *weights)]
    with torch.autocast("cpu", torch.bfloat16):
        assert mlp_block(*double).dtype == torch.float64


@pytest.mark.parametrize(
    "kib, dtype, width, most",
    [
        (227, torch.bfloat16, 64, 512),
        (163, torch.float16, 32, 512),
        (99, torch.bfloat16, 64, 256),
        (227, torch.float32, 64, 256),
        (163, torch.float32, 48, 128),
        (99, torch.float32, 64, 0),
        (227, torch.bfloat16, 80, 0),
    ],
)
def test_hidden_layers_that_a_gpu_takes(
    kib: int, dtype: torch.dtype, width: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeTensorMode():
        x = torch.empty(3, width, device="cuda", dtype=dtype)
    properties = SimpleNamespace(shared_memory_per_block_optin=kib << 10)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(support, "WARNED", set())
    assert not most or has_kernel(x, None, most)
    reason = f"more than {most} features" if width <= 64 else "width 80"
    with pytest.warns(UserWarning, match=f"{reason}.* so add_norm and mlp run") as caught:
        assert not has_kernel(x, x, most + 1) and not has_kernel(x, None, most + 1)
    assert len(caught) == 1


def test_nan_propagates() -> None:
    x, z, *parameters = (t.detach() for t in operands(3, 32, 16))
    z[1, 2] = float("nan")
    assert mlp_block(x, z, *parameters).isnan().all(dim=1).tolist() == [False, True, False]


def test_gradcheck() -> None:
    inputs = operands(4, 6, 7)
    kw: dict[str, Any] = {"dropout": 0.3, "drop_path": 0.3, "seed": SEED}
    assert torch.autograd.gradcheck(lambda *t: mlp_block(*t, **kw), inputs)
    assert torch.autograd.gradcheck(lambda x, z, *t: mlp_block(x, None, *t), inputs)


def test_strides_do_not_matter() -> None:
    inputs = operands(20, 32, 16)
    kw = {"dropout": 0.2, "drop_path": 0.2, "seed": SEED}
    expected = results(mlp_block, inputs, **kw)
    spaced = [x.detach().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_() for x in inputs]
    for i, pair in enumerate(zip(expected, results(mlp_block, spaced, **kw), strict=True)):
        assert_close(f"result {i}", *pair, 1e-13)


def test_bad_input() -> None:
    x, z, gamma, beta, w1, b1, w2, b2 = inputs = operands(5, 8, 12)
    for position, wrong, message in [
        (0, x[0], r"x must be \[T, D\] and w1 \[F, D\] with widths above 0"),
        (0, x[:, :0], r"x must be \[T, D\] and w1 \[F, D\] with widths above 0"),
        (1, z[:3], r"z must be \[5, 8\]"),
        (2, gamma[:3], r"norm_weight must be \[8\]"),
        (3, beta[None], r"norm_bias must be \[8\]"),
        (4, w1[:, :3], r"w1 must be \[12, 8\]"),
        (5, b1[:3], r"b1 must be \[12\]"),
        (6, w2[:, :3], r"w2 must be \[8, 12\]"),
        (7, b2[:3], r"b2 must be \[8\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            mlp_block(*inputs[:position], wrong, *inputs[position + 1 :])
    for position, wrong, message in [
        (0, x.float(), r"x is torch\.float32; with z in torch\.float64"),
        (1, z.float(), r"x is torch\.float64; with z in torch\.float32 it must be torch\.float32"),
        (2, gamma.float(), r"norm_weight is torch\.float32; with z"),
        (6, w2.float(), r"w2 is torch\.float32; with z in torch\.float64"),
        (1, z.long(), "z must be one of float16, bfloat16, float32, float64"),
    ]:
        with pytest.raises(TypeError, match=message):
            mlp_block(*inputs[:position], wrong, *inputs[position + 1 :])
    with pytest.raises(ValueError, match=r"sequence must be \[5\]"):
        mlp_block(*inputs, drop_path=0.1, sequence=torch.arange(4))
    with pytest.raises(ValueError, match="activation must be one of"):
        mlp_block(*inputs, activation="tanh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the dropout rate must be at least 0 and below 1"):
        mlp_block(*inputs, dropout=1.0)
    with pytest.raises(ValueError, match="the drop_path rate must be at least 0 and below 1"):
        mlp_block(*inputs, drop_path=-0.5)
    with pytest.raises(ValueError, match="seed must have 3 elements"):
        mlp_block(*inputs, dropout=0.1, seed=SEED[:2])
