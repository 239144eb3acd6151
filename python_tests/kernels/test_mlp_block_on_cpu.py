"""The CUDA operator mlp_block as PyTorch calls it, run on CPU tensors by the SIMT host."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.cases import MLPBlockCase
from python_tests.cases.case import REAL_DTYPES
from python_tests.kernels.on_simt import check, check_compiled
from python_tests.support.tensors import assert_close
from recgrela.nn import MLP, AddNorm, Sequences
from recgrela.nn.sequences import SeedStream
from recgrela.ops import add_norm, mlp, mlp_block


@pytest.mark.parametrize(
    "width, hidden, activation", [(64, 256, "gelu"), (48, 37, "silu"), (32, 200, "none")]
)
@pytest.mark.parametrize("drop", [0.0, 0.25])
@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_mlp_block(
    simt: Any, dtype: torch.dtype, drop: float, width: int, hidden: int, activation: str
) -> None:
    sizes = {"width": width, "hidden": hidden, "activation": activation}
    check(simt, MLPBlockCase(lengths=(1, 0, 90, 3), dtype=dtype, drop=drop, **sizes))


@pytest.mark.parametrize("width, hidden", [(80, 64), (32, 600)])
def test_composition_of_other_sizes(simt: Any, width: int, hidden: int) -> None:
    check(simt, MLPBlockCase(lengths=(20, 3), dtype=torch.bfloat16, drop=0.25, width=width, hidden=hidden))


@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_without_a_branch(simt: Any, dtype: torch.dtype) -> None:
    """Rows of float32, and rows in half precision, whose result is float32."""
    x, _, *parameters = MLPBlockCase(lengths=(50,), width=32, hidden=64).operands().inputs.values()
    rows = x.detach().to(dtype).requires_grad_()
    leaves = (rows, *parameters)

    def results() -> list[Tensor]:
        y = mlp_block(rows, None, *parameters, dropout=0.2, seed=torch.tensor([1, 2, 3]))
        return [y.detach(), *torch.autograd.grad(y, leaves, torch.linspace(-1, 2, y.numel()).view(y.shape))]

    expected = results()
    with simt():
        got = results()
    assert [t.dtype for t in got] == [torch.float32, dtype, *[torch.float32] * 6]
    for i, pair in enumerate(zip(expected, got, strict=True)):
        assert_close(f"result {i}", *pair, 1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout, drop_path", [(0.0, 0.0), (0.3, 0.0), (0.0, 0.4), (0.3, 0.4)])
@pytest.mark.parametrize("wanted", [False, True])
def test_a_block_of_a_model(
    simt: Any, dtype: torch.dtype, dropout: float, drop_path: float, wanted: bool
) -> None:
    """With parameters in either dtype, the kernel drops what the norm and the MLP would drop."""
    norm, network = AddNorm(32, drop_path=drop_path).to(dtype), MLP(32, 48, "gelu", dropout).to(dtype)
    sequences = Sequences.of(torch.tensor([0, 5, 6, 20]), 20, 14)
    if wanted:
        sequences = sequences.last_only()
    x, branch = torch.randn(2, 3 if wanted else 20, 32).to(dtype)

    def step() -> list[Tensor]:
        torch.manual_seed(3)
        leaves = [x.clone().requires_grad_(), branch.clone().requires_grad_()]
        seeded = replace(sequences, stream=SeedStream(torch.device("cpu")))
        stream, rest = network.block(norm, *leaves, seeded)
        called.append(rest is None)
        y = stream if rest is None else stream + rest
        leaves += [*norm.parameters(), *network.parameters()]
        return [
            y.detach(),
            *torch.autograd.grad(y, leaves, torch.linspace(-1, 2, y.numel()).view(y.shape).to(dtype)),
        ]

    called: list[bool] = []
    expected = step()
    with simt():
        got = step()
    assert called == [False, True]
    for i, pair in enumerate(zip(expected, got, strict=True)):
        assert pair[1].dtype == dtype
        assert_close(f"result {i}", *pair, 1e-5 if dtype == torch.float32 else 4e-2)


class WithoutGradient(torch.autograd.Function):
    """A function of PyTorch's users whose backward returns None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        return None


def test_result_without_a_gradient(simt: Any) -> None:
    x, z, *parameters = MLPBlockCase(lengths=(5,), width=32, hidden=16).operands().inputs.values()
    with simt():
        y = mlp_block(x, z, *parameters)
        gradients = torch.autograd.grad(
            WithoutGradient.apply(y).sum(), (x, z, *parameters), allow_unused=True
        )
    assert gradients == (None,) * 8


def test_gradients_of_any_layout(simt: Any) -> None:
    leaves = list(MLPBlockCase(lengths=(50,), width=32, hidden=64).operands().inputs.values())
    with simt():
        y = mlp_block(*leaves)
        for d_y in (torch.ones(()).expand(y.shape), torch.linspace(-1, 2, y.numel()).view(32, 50).t()):
            got, expected = (
                torch.autograd.grad(y, leaves, d, retain_graph=True) for d in (d_y, d_y.contiguous())
            )
            assert all(map(torch.equal, got, expected))


def test_autocast_casts_rows_alone(simt: Any) -> None:
    x, z, gamma, beta, *weights = MLPBlockCase(lengths=(40,), hidden=64).operands().inputs.values()
    with torch.autocast("cpu", torch.bfloat16):
        s, normed = add_norm(x, z, gamma, beta)
        expected = s + mlp(normed, *weights)
        with simt():
            y = mlp_block(x, z, gamma, beta, *weights)
    assert y.dtype == torch.float32
    assert_close("y", expected, y, 2e-2)


def test_mlp_block_is_an_operator(simt: Any) -> None:
    """opcheck, and one graph of the public function."""
    case = MLPBlockCase(lengths=(20,), dtype=torch.bfloat16, width=32, hidden=48).operands()
    sequence, seed, leaves = case.constants["sequence"], case.constants["seed"], tuple(case.inputs.values())
    module = sys.modules["recgrela.ops.mlp_block"]
    torch.library.register_fake("recgrela_simt::mlp_block", module._fake)
    torch.library.register_fake("recgrela_simt::mlp_block_backward", module._fake_backward)
    operators = torch.ops.recgrela_simt
    x, z, *parameters = leaves
    plain = [p.detach() for p in parameters]
    for rates, dtype in (((0.2, 0.3), torch.bfloat16), ((0.0, 0.0), torch.float32)):
        others = (sequence, seed, 1e-5, "gelu", *rates, dtype)
        for branch in (z.detach().to(dtype).requires_grad_(), None):
            with simt():
                torch.library.opcheck(operators.mlp_block.default, (x, branch, *parameters, *others))
            args = (case.upstream["y"], x.detach(), *plain, *others, branch is not None)
            torch.library.opcheck(operators.mlp_block_backward.default, args)

    def f(*args: Tensor) -> Tensor:
        options: dict[str, Any] = {"dropout": 0.2, "drop_path": 0.3, "sequence": sequence, "seed": seed}
        return mlp_block(*args, **options).square().sum()

    got = check_compiled(simt, f, leaves)
    assert [g.dtype for g in got] == [torch.float32, torch.bfloat16, *[torch.float32] * 6]


def test_mlp_block_refuses(simt: Any) -> None:
    x, z, p, q, w1, b1, w2, b2 = (
        t.detach() for t in MLPBlockCase(lengths=(5,), width=32, hidden=8).operands().inputs.values()
    )
    seed = torch.tensor([1, 2, 3])
    operator, single = torch.ops.recgrela_simt.mlp_block, torch.float32
    for args, message in [
        (
            (x, z[:4], p, q, w1, b1, w2, b2, None, None, 1e-5, "gelu", 0.0, 0.0, single),
            "z must have the shape",
        ),
        ((x, z, p, q, w1, b1, w2.T, b2, None, None, 1e-5, "gelu", 0.0, 0.0, single), "w2 must have the"),
        ((x, z, p, q[:8], w1, b1, w2, b2, None, None, 1e-5, "gelu", 0.0, 0.0, single), "norm_bias must"),
        ((x, z, p, q, w1, b1, w2, b2, seed, seed, 1e-5, "gelu", 0.0, 0.5, single), "sequence must have"),
        ((x, z, p, q, w1, b1, w2, b2, None, None, 1e-5, "gelu", 0.5, 0.0, single), "seed must be int64"),
        ((x, z, p, q, w1, b1, w2, b2, None, None, 1e-5, "tanh", 0.0, 0.0, single), "gelu, not tanh"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            operator(*args)
    wide = MLPBlockCase(lengths=(5,), width=80, hidden=8).operands().inputs.values()
    with pytest.raises(RuntimeError, match="widths of 32 to 64 in steps of 16, not 80"):
        operator(*(t.detach() for t in wide), None, None, 1e-5, "gelu", 0.0, 0.0, single)
