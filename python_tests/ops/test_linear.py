from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.support.tensors import assert_close, flops_of
from recgrela.ops import linear, linear_reference, support

NAMES = ("x", "weight", "bias", "weight2", "bias2")
FLOAT32 = NAMES[1:]
# Shared memory of a block in KiB, dtype of the rows, and whether the kernel takes 384 outputs.
FITS = [(99, torch.float32, False), (163, torch.float32, True), (99, torch.bfloat16, True)]


def operands(rows: int, i: int, o: int, p: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = [(rows, i), (o, i), (o,), (p, i), (p,)]
    return [torch.randn(*shape, dtype=dtype).requires_grad_() for shape in shapes]


def example() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Operands and other arguments of a small call, for test_support.py."""
    return dict(zip(NAMES, operands(5, 8, 16, 4), strict=True)), {}


def results(function: Any, inputs: list[Tensor | None], seed: int = 0) -> list[Tensor]:
    """Outputs and gradients."""
    out = function(*inputs)
    outputs = [out] if isinstance(out, Tensor) else list(out)
    generator = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in outputs]
    leaves = [x for x in inputs if x is not None]
    return [y.detach() for y in outputs] + list(torch.autograd.grad(outputs, leaves, upstream))


def assert_same(expected: list[Tensor], got: list[Tensor], ratio: float) -> None:
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        assert_close(f"result {i}", a, b, ratio)


@pytest.mark.parametrize("absent", [(), ("bias",), ("bias2",), ("weight2", "bias2"), NAMES[2:]])
@pytest.mark.parametrize("rows", [0, 1, 47, 200])
def test_equals_reference(rows: int, absent: tuple[str, ...]) -> None:
    named = zip(NAMES, operands(rows, 8, 32, 5), strict=True)
    inputs = [None if name in absent else x for name, x in named]
    out = linear(*inputs)
    assert isinstance(out, Tensor) == ("weight2" in absent)
    assert_same(results(linear_reference, inputs), results(linear, inputs), 1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_parameters_of_half_precision_rows(dtype: torch.dtype) -> None:
    x, *parameters = operands(20, 8, 16, 4, torch.float32)
    half = x.detach().to(dtype).requires_grad_()
    got = results(linear, [half, *parameters])
    rounded = [p.detach().to(dtype).requires_grad_() for p in parameters]
    expected = results(linear, [half, *rounded])
    assert [t.dtype for t in got] == [dtype] * 3 + [torch.float32] * 4
    assert all(torch.equal(a.to(b.dtype), b) for a, b in zip(expected, got, strict=True))


def test_autocast_computes_as_linear_layers_do() -> None:
    inputs = operands(20, 8, 16, 4, torch.float32)
    x, w, b, w2, b2 = inputs
    for rows in (x, x.detach().bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            got = linear(rows, w, b, w2, b2)
            expected = F.linear(rows, w, b), F.linear(rows, w2, b2)
        assert all(
            torch.equal(a, c) and a.dtype == torch.bfloat16 for a, c in zip(expected, got, strict=True)
        )
        d_y = [torch.randn_like(y) for y in got]
        grads = (torch.autograd.grad(y, inputs[1:], d_y) for y in (expected, got))
        assert all(torch.equal(a, c) for a, c in zip(*grads, strict=True))


def test_nan_propagates() -> None:
    inputs = operands(3, 4, 8, 4)
    with torch.no_grad():
        inputs[0][1, 2] = float("nan")
    for y in linear(*inputs):
        assert y.isnan().all(dim=1).tolist() == [False, True, False]


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(linear, operands(5, 3, 6, 2))


def test_strides_do_not_matter() -> None:
    inputs = operands(20, 8, 16, 6)
    expected = results(linear, inputs)
    spaced = [x.detach().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_() for x in inputs]
    slices = [torch.cat((x.detach(), x.detach()), -1)[..., : x.shape[-1]].requires_grad_() for x in inputs]
    for strided in (spaced, slices):
        assert_same(expected, results(linear, strided), 1e-13)


def test_bad_input() -> None:
    x, w, b, w2, b2 = operands(5, 4, 8, 6)
    for args, message in [
        ((x[0], w), r"x must be \[T, I\]"),
        ((x, b), r"weight \[O, I\]"),
        ((x[:, :0], w[:, :0]), "with widths above 0"),
        ((x, w[:0]), "with widths above 0"),
        ((x, w[:, :3]), r"weight must be \[8, 4\]"),
        ((x, w, b[:3]), r"bias must be \[8\]"),
        ((x, w, b, w2[:, :2]), r"weight2 must be \[6, 4\]"),
        ((x, w, b, w2[0]), r"weight2 must be \["),
        ((x, w, b, w2[:0]), r"weight2 must be \[P, 4\] with P above 0"),
        ((x, w, b, w2, b2[:2]), r"bias2 must be \[6\]"),
        ((x, w, b, None, b2), "bias2 needs weight2; pass both or neither"),
        ((x, w.to("meta")), "weight is on meta"),
    ]:
        with pytest.raises(ValueError, match=message):
            linear(*args)
    with pytest.raises(TypeError, match=r"weight2 is torch\.float32"):
        linear(x, w, b, w2.float(), b2)
    with pytest.raises(TypeError, match=r"weight is torch\.float64, x is torch\.bfloat16"):
        linear(x.bfloat16(), w)
    with pytest.raises(TypeError, match="x must be one of float16, bfloat16, float32, float64"):
        linear(x.long(), w.long())


def test_shapes_on_the_meta_device() -> None:
    x, w, b, w2, _ = (t.detach().to("meta").requires_grad_() for t in operands(20, 8, 16, 6))
    y, y2 = linear(x, w, b, w2)
    assert (y.shape, y2.shape) == ((20, 16), (20, 6))
    gradients = torch.autograd.grad(y.sum(), [x, w, b, w2])
    assert [g.shape for g in gradients] == [x.shape, w.shape, b.shape, w2.shape]
    assert linear(x, w).shape == (20, 16)
    assert flops_of(lambda: linear(x, w, b, w2)) == 2 * 20 * 8 * (16 + 6)


@pytest.mark.parametrize("kib, dtype, fits", FITS)
def test_many_float32_outputs_need_shared_memory(
    kib: int, dtype: torch.dtype, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["recgrela.ops.linear"]
    properties = SimpleNamespace(shared_memory_per_block_optin=kib << 10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(support, "WARNED", set())
    x = SimpleNamespace(dtype=dtype, device=torch.device("cuda"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert module._fits_device(x, 384) == fits
        assert module._fits_device(x, 320)
    assert len(caught) == (not fits) and all("more than 320 outputs" in str(w.message) for w in caught)


def test_flops_are_those_of_two_layers() -> None:
    x, w, b, w2, b2 = operands(7, 16, 40, 16)
    assert flops_of(lambda: linear(x, w, b, w2, b2)) == 2 * 7 * 16 * (40 + 16)


def test_x_is_returned() -> None:
    x, w, b, w2, b2 = operands(7, 8, 16, 4)
    y, same = linear(x, w, b, return_x=True)
    assert torch.equal(same, x) and torch.equal(y, linear(x, w, b))
    y, y2, same = linear(x, w, b, w2, b2, return_x=True)
    assert torch.equal(same, x)
    for a, c in zip((y, y2), linear(x, w, b, w2, b2), strict=True):
        assert torch.equal(a, c)
    (d_x,) = torch.autograd.grad(y.sum() + same.square().sum(), x)
    assert_close("d_x", 2 * x.detach() + w.detach().sum(0), d_x, 1e-12)
