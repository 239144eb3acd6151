from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.cases.case import REAL_DTYPES
from python_tests.support.gpu import needs_gpu
from python_tests.support.tensors import assert_close
from recgrela.ops import add_norm, add_norm_reference, dropout
from tools.step_cost.counting import Counter

NAMES = ("x", "z", "weight", "bias")
FLOAT32 = ("x", "weight", "bias")
SEED = torch.tensor([123456789012345, 987654321098765])
HALF = (torch.float16, torch.bfloat16)


def operands(rows: int, width: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = [(rows, width), (rows, width), (width,), (width,)]
    return [(torch.randn(*shape, dtype=dtype) + 0.5).requires_grad_() for shape in shapes]


def example() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Operands and other arguments of a small call, for test_support.py."""
    others = {"dropout": 0.2, "drop_path": 0.3, "sequence": torch.tensor([0, 0, 1, 1, 1]), "seed": SEED}
    return dict(zip(NAMES, operands(5, 32), strict=True)), others


def upstream_of(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)


def results(function: Any, inputs: list[Any], used: tuple[int, ...] = (0, 1), **kw: Any) -> list[Tensor]:
    """Outputs, and gradients of the `used` outputs; an unused operand has the gradient zero."""
    outputs = function(*inputs, **kw)
    leaves = [x for x in inputs if x is not None]
    upstream = [upstream_of(outputs[i]) * (1 + i) for i in used]
    more: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    grads = torch.autograd.grad([outputs[i] for i in used], leaves, upstream, **more)
    return [y.detach() for y in outputs] + list(grads)


def assert_same(expected: list[Tensor], got: list[Tensor], ratio: float, scale: float = 1.0) -> None:
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        assert_close(f"result {i}", a, b, ratio, scale)


def sequences(rows: int) -> Tensor:
    """Indices of sequences of 3 rows."""
    return torch.arange(rows) // 3


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 2, 5, 47, 200, 1031])
def test_equals_reference_at_any_number_of_rows(rows: int, post_norm: bool, isa: str) -> None:
    inputs = operands(rows, 32)
    kw = {"post_norm": post_norm, "dropout": 0.3, "drop_path": 0.4, "seed": SEED}
    for sequence in (None, sequences(rows)):
        expected, got = (results(f, inputs, **kw, sequence=sequence) for f in (add_norm_reference, add_norm))
        assert_same(expected, got, 1e-12)


@pytest.mark.parametrize("width", [1, 2, 7, 16, 48, 64, 100, 256, 300])
@pytest.mark.parametrize("post_norm", [False, True])
def test_equals_reference_at_any_width(width: int, post_norm: bool, isa: str) -> None:
    inputs = operands(50, width)
    for kw in ({}, {"dropout": 0.5}, {"drop_path": 0.5, "sequence": sequences(50)}):
        seeded = {"seed": SEED} if kw else {}
        options = {"post_norm": post_norm, "eps": 1e-5, **kw, **seeded}
        expected, got = (results(f, inputs, **options) for f in (add_norm_reference, add_norm))
        assert_same(expected, got, 1e-11)


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("absent", [False, True])
def test_either_output_may_be_unused(used: tuple[int, ...], post_norm: bool, absent: bool, isa: str) -> None:
    inputs: list[Any] = operands(20, 48)
    if absent:
        inputs[1] = None
    kw = {"post_norm": post_norm, "dropout": 0.3, "drop_path": 0.2, "seed": SEED}
    expected, got = (results(f, inputs, used, **kw) for f in (add_norm_reference, add_norm))
    assert_same(expected, got, 1e-12)


def test_what_is_returned() -> None:
    x, z, weight, bias = operands(6, 32)
    with torch.no_grad():
        assert add_norm(x, None, weight, bias)[0] is x
    residual, _ = add_norm(x, None, weight, bias)
    assert residual.data_ptr() == x.data_ptr() and torch.equal(residual, x)
    residual, normed = add_norm(x, z, weight, bias, post_norm=True)
    assert residual is normed
    residual, normed = add_norm(x, z, weight, bias)
    assert torch.equal(residual, x + z)
    assert_close("normed", F.layer_norm(x + z, (32,), weight, bias, 1e-12), normed, 1e-13)


def test_the_gradient_of_the_residual_stream_arrives_in_the_backward() -> None:
    x, _, weight, bias = operands(6, 32)

    def sums(residual: Tensor, normed: Tensor) -> Tensor:
        return (residual * 3 + normed.square()).sum()

    expected = torch.autograd.grad(sums(x, F.layer_norm(x, (32,), weight, bias, 1e-12)), (x, weight, bias))
    loss = sums(*add_norm(x, None, weight, bias))
    with Counter("cpu") as counter:
        got = torch.autograd.grad(loss, (x, weight, bias))
    for name, a, b in zip(("d_x", "d_weight", "d_bias"), expected, got, strict=True):
        assert_close(name, a, b, 1e-12)
    assert "add" not in {call.name for call in counter.calls}  # autograd adds nothing
    # either output alone
    residual, normed = add_norm(x, None, weight, bias)
    assert torch.equal(torch.autograd.grad(residual.sum(), x, retain_graph=True)[0], torch.ones_like(x))
    (alone,) = torch.autograd.grad(normed.square().sum(), x)
    assert_close("d_x", got[0] - 3, alone, 1e-12)


def test_drops_elements_and_sequences_by_seed() -> None:
    x, z, weight, bias = (t.detach() for t in operands(12, 32))
    index = sequences(12)
    residual, _ = add_norm(x, z, weight, bias, dropout=0.3, drop_path=0.5, sequence=index, seed=SEED)
    path = dropout(torch.ones(4, dtype=torch.float64), 0.5, SEED[1])[index]
    assert_close("s", x + dropout(z, 0.3, SEED[0]) * path[:, None], residual, 1e-13)
    assert 0 < (path == 0).sum() < 12
    # 2^32 is past the last index; a hash uses an index modulo 2^32
    again, _ = add_norm(x, z, weight, bias, dropout=0.3, drop_path=0.5, sequence=index + 2**32, seed=SEED)
    assert torch.equal(residual, again)


def test_draws_from_torchs_generator() -> None:
    inputs = operands(50, 32)
    torch.manual_seed(0)
    a, b = (add_norm(*inputs, dropout=0.5)[0] for _ in range(2))
    assert not torch.equal(a, b)
    torch.manual_seed(0)
    assert torch.equal(a, add_norm(*inputs, dropout=0.5)[0])


@pytest.mark.parametrize("post_norm", [False, True])
def test_float32(post_norm: bool, isa: str) -> None:
    inputs = operands(300, 64)
    single = [x.detach().float().requires_grad_() for x in inputs]
    kw = {"post_norm": post_norm, "dropout": 0.2, "drop_path": 0.1, "seed": SEED}
    assert_same(results(add_norm_reference, inputs, **kw), results(add_norm, single, **kw), 3e-6)


def test_rows_far_from_zero() -> None:
    """The variance is that of centered rows, not a difference of large numbers."""
    x, z, weight, bias = operands(40, 64)
    with torch.no_grad():
        x += 1e4
    single = [t.detach().float().requires_grad_() for t in (x, z, weight, bias)]
    rounded = [t.detach().double().requires_grad_() for t in single]
    assert_same(results(add_norm_reference, rounded), results(add_norm, single), 2e-3)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("post_norm", [False, True])
def test_half_precision_keeps_the_residual_in_float32(dtype: torch.dtype, post_norm: bool) -> None:
    x, z, weight, bias = (t.detach().requires_grad_() for t in operands(9, 32, torch.float32))
    half = z.detach().to(dtype).requires_grad_()
    got = results(add_norm, [x, half, weight, bias], post_norm=post_norm)
    assert [t.dtype for t in got] == [torch.float32, dtype, torch.float32, dtype] + [torch.float32] * 2
    same = [x, half.detach().float().requires_grad_(), weight, bias]
    expected = results(add_norm, same, post_norm=post_norm)
    assert_close("residual", expected[0], got[0], 1e-6)
    assert_close("normed", expected[1], got[1], 1e-2)
    rounded = [p.detach().to(dtype).requires_grad_() for p in (weight, bias)]
    residual, normed = add_norm(x, half, *rounded, post_norm=post_norm)
    assert (residual.dtype, normed.dtype) == (torch.float32, dtype)
    residual, normed = add_norm(half, None, weight, bias, post_norm=post_norm)
    assert normed.dtype == dtype and (residual is half or post_norm)


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("absent", [False, True])
def test_autocast(post_norm: bool, absent: bool) -> None:
    x, z, weight, bias = operands(9, 32, torch.float32)
    branch = None if absent else z
    with torch.autocast("cpu", torch.bfloat16):
        residual, normed = add_norm(x, branch, weight, bias, post_norm=post_norm)
    assert residual.dtype == torch.float32 and normed.dtype == torch.bfloat16
    rounded = None if absent else z.detach().bfloat16().float()
    expected = add_norm(x, rounded, weight, bias, post_norm=post_norm)
    assert_close("residual", expected[0], residual, 1e-6)
    assert torch.equal(expected[1].bfloat16(), normed)
    double = [t.detach().double() for t in (x, z, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        assert {t.dtype for t in add_norm(*double)} == {torch.float64}


def test_nan_propagates() -> None:
    x, z, weight, bias = (t.detach() for t in operands(3, 32))
    z[1, 2] = float("nan")
    assert add_norm(x, z, weight, bias)[1].isnan().all(dim=1).tolist() == [False, True, False]


def test_the_number_of_threads_does_not_matter() -> None:
    inputs = operands(3000, 64, torch.float32)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(results(add_norm, inputs, dropout=0.1, seed=SEED))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("post_norm", [False, True])
def test_gradcheck(post_norm: bool) -> None:
    inputs = operands(4, 6)
    kw: dict[str, Any] = {"post_norm": post_norm, "dropout": 0.3, "drop_path": 0.3, "seed": SEED}
    assert torch.autograd.gradcheck(lambda *t: add_norm(*t, **kw), inputs)


@pytest.mark.parametrize("drop", [0.0, 0.3])
@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("absent", [False, True])
def test_opcheck(post_norm: bool, absent: bool, drop: float) -> None:
    x, z, weight, bias = operands(5, 32)
    branch, sequence, seed = None if absent else z, sequences(5) if drop else None, SEED if drop else None
    options = (1e-5, post_norm, drop, drop, torch.float64)
    torch.library.opcheck(
        torch.ops.recgrela.add_norm.default, (x, branch, weight, bias, sequence, seed, *options)
    )
    saved = [None if t is None else t.detach() for t in (x, branch if post_norm else None, weight)]
    for upstream in ((x.detach(), None), (None, x.detach()), (x.detach(), z.detach())):
        args = (*upstream, *saved, sequence, seed, *options, not absent)
        torch.library.opcheck(torch.ops.recgrela.add_norm_backward.default, args)


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("absent", [False, True])
def test_compiles_without_a_graph_break(post_norm: bool, absent: bool) -> None:
    inputs = operands(5, 32)

    def f(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        branch = None if absent else z
        residual, normed = add_norm(x, branch, weight, bias, post_norm=post_norm, dropout=0.1, seed=SEED)
        return (residual * 2 + normed).square().sum() + z.sum()

    expected = torch.autograd.grad(f(*inputs), inputs)
    got = torch.autograd.grad(torch.compile(f, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    assert_same(list(expected), list(got), 1e-12)


def test_strides_do_not_matter() -> None:
    inputs = operands(20, 32)
    kw = {"dropout": 0.2, "drop_path": 0.2, "seed": SEED}
    expected = results(add_norm, inputs, **kw)
    spaced = [x.detach().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_() for x in inputs]
    slices = [torch.cat((x.detach(), x.detach()), -1)[..., : x.shape[-1]].requires_grad_() for x in inputs]
    for strided in (spaced, slices):
        assert_same(expected, results(add_norm, strided, **kw), 1e-13)
    residual, normed = add_norm(*inputs, **kw)
    d_residual, d_normed = upstream_of(residual).T.contiguous().T, 2 * upstream_of(normed).T.contiguous().T
    grads = torch.autograd.grad((residual, normed), inputs, (d_residual, d_normed))
    assert_same(expected[2:], list(grads), 1e-13)
    broadcast = torch.autograd.grad(add_norm(*inputs, **kw)[1].sum(), inputs)
    dense = torch.autograd.grad(add_norm(*inputs, **kw)[1], inputs, torch.ones_like(normed))
    assert_same(list(dense), list(broadcast), 1e-13)


def test_bad_input() -> None:
    x, z, weight, bias = operands(5, 8)
    for args, message in [
        ((x[0], z, weight, bias), r"x must be \[T, D\] with a width above 0"),
        ((x[:, :0], None, weight, bias), r"x must be \[T, D\] with a width above 0"),
        ((x, z[:3], weight, bias), r"z must be \[5, 8\]"),
        ((x, z, weight[:3], bias), r"weight must be \[8\]"),
        ((x, z, weight, bias[None]), r"bias must be \[8\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            add_norm(*args)
    with pytest.raises(TypeError, match=r"x is torch\.float64; with z in torch\.float32 it must be torch\.f"):
        add_norm(x, z.float(), weight, bias)
    with pytest.raises(
        TypeError, match=r"x is torch\.bfloat16; with z in torch\.bfloat16 it must be torch\.f"
    ):
        add_norm(x.bfloat16(), z.bfloat16(), weight, bias)
    with pytest.raises(TypeError, match=r"weight is torch\.float32; with z in torch\.float64"):
        add_norm(x, z, weight.float(), bias)
    with pytest.raises(TypeError, match="z must be one of float16, bfloat16, float32, float64"):
        add_norm(x, z.long(), weight, bias)
    with pytest.raises(TypeError, match="x must be one of float16, bfloat16, float32, float64"):
        add_norm(x.long(), None, weight, bias)
    with pytest.raises(ValueError, match=r"sequence must be \[5\]"):
        add_norm(x, z, weight, bias, drop_path=0.1, sequence=torch.arange(4))
    with pytest.raises(TypeError, match=r"sequence is torch\.int32"):
        add_norm(x, z, weight, bias, drop_path=0.1, sequence=torch.arange(5).int())
    with pytest.raises(ValueError, match="the dropout rate must be at least 0 and below 1"):
        add_norm(x, z, weight, bias, dropout=1.0)
    with pytest.raises(ValueError, match="the drop_path rate must be at least 0 and below 1"):
        add_norm(x, z, weight, bias, drop_path=-0.5)
    with pytest.raises(ValueError, match="seed must have 2 elements"):
        add_norm(x, z, weight, bias, dropout=0.1, seed=SEED[0])
    (d_x,) = torch.autograd.grad(add_norm(x, z, weight, bias)[1].square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(d_x.sum(), x)


def test_bare_operators_refuse() -> None:
    x, z, weight, bias = (t.detach() for t in operands(5, 8))
    options = (1e-5, False, 0.0, 0.0, torch.float64)
    for args, message in [
        ((x[0], z, weight, bias, None, None, *options), "x must have the shape"),
        ((x, z[:3], weight, bias, None, None, *options), "z must have the shape"),
        ((x, z, weight, bias[:3], None, None, *options), "bias must have the shape"),
        ((x, z, weight, bias, SEED, None, *options), "sequence must have the shape"),
        ((x, z, weight, bias, None, None, 1e-5, False, 0.1, 0.0, torch.float64), "seed must be int64"),
        (
            (x.float(), None, weight.float(), bias.float(), None, None, 1e-5, False, 0.0, 0.0, torch.half),
            "take operands of one dtype",
        ),
    ]:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.recgrela.add_norm(*args)
    args = (None, x, x, z, weight, None, None, *options, True)
    with pytest.raises(RuntimeError, match="takes the sum as x, and no z"):
        torch.ops.recgrela.add_norm_backward(*args)


@needs_gpu
@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_cuda_equals_reference(
    dtype: torch.dtype, post_norm: bool, absent: bool, used: tuple[int, ...]
) -> None:
    for rows, width in ((1, 32), (50, 48), (20_003, 64), (333, 256)):
        x, z, *parameters = (t.detach() for t in operands(rows, width, torch.float32))
        inputs = [x.cuda(), None if absent else z.to(dtype).cuda(), *(p.cuda() for p in parameters)]
        kw: dict[str, Any] = {"post_norm": post_norm}
        if not absent:
            kw |= {"dropout": 0.3, "drop_path": 0.2, "seed": SEED.cuda(), "sequence": sequences(rows).cuda()}
        double, single = (
            [None if t is None else t.to(wide or t.dtype).requires_grad_() for t in inputs]
            for wide in (torch.float64, None)
        )
        expected, got = results(add_norm_reference, double, used, **kw), results(add_norm, single, used, **kw)
        assert_same(expected, got, 1e-5 if dtype == torch.float32 else 2e-2)
