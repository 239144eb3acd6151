"""What the sandbox runs: calls of ops with changed operands."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from python_tests.cases import CASES, Case, Operands
from python_tests.cases.compare import TOLERANCES

LENGTHS = (1, 7, 0, 5)
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64, torch.uint8)
REFUSALS = (ValueError, TypeError, NotImplementedError, RuntimeError)

# Changes of values and strides, which keep an operand valid, and changes that most operands do not allow.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "columns": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    "every second channel": lambda x: x.repeat_interleave(2, -1)[..., ::2] if x.dim() else x,
    "unaligned": lambda x: torch.cat([x[..., :1], x], -1)[..., 1:] if x.dim() else x,
    "expanded": lambda x: x[:1].expand(x.shape) if x.dim() and len(x) else x,
    "conjugate bit": lambda x: x.conj().resolve_conj() if x.is_complex() else x,
}
CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "no rows": lambda x: x[:0] if x.dim() else x,
    "one row less": lambda x: x[1:] if x.dim() else x,
    "one row more": lambda x: torch.cat([x, x[:1]]) if x.dim() else x,
    "no channels": lambda x: x[..., :0] if x.dim() else x,
    "one channel less": lambda x: x[..., 1:] if x.dim() else x,
    "one dimension more": lambda x: x[None],
    "one dimension less": lambda x: x[0] if x.dim() and len(x) else x,
    "a scalar": lambda x: x.flatten()[:1].sum(),
    "transposed": lambda x: x.mT if x.dim() > 1 else x,
    "on meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.detach().to_sparse() if x.dim() > 1 else x,
    "none": lambda x: None,
    "nan": lambda x: torch.full_like(x, torch.nan) if x.is_floating_point() else x,
    **{f"as {dtype}": lambda x, dtype=dtype: x.detach().to(dtype) for dtype in DTYPES},
}
OFFSETS: dict[str, Callable[[Tensor], Tensor]] = {
    "int32": lambda x: x.int(),
    "decreasing": lambda x: x.flip(0),
    "negative": lambda x: x - 3,
    "beyond the rows": lambda x: x + 100,
    "huge": lambda x: x + 2**40,
    "far past the end": lambda x: torch.cat([x[:-1], x[-1:] + 2**62]),
    "empty": lambda x: x[:0],
    "one": lambda x: x[:1],
    "short": lambda x: x[:-1],
    "strided": lambda x: x.repeat_interleave(2)[::2],
    "floats": lambda x: x.double(),
    "in two dimensions": lambda x: x[None],
    "int16": lambda x: x.to(torch.int16),
}


VALID = {*LAYOUTS, "int32", "strided"}


def names_of(op: int) -> list[str]:
    """Operands of all variants of an op."""
    return sorted({name for case in _variants(op) for name in case.operands().inputs})


def _variants(op: int) -> list[Case]:
    return list(CASES[op].variants(LENGTHS, torch.float32))


def call_op(op: int, variant: int, changes: list[tuple[str, str]]) -> str:
    """Calls an op and its reference with changed operands, forward and backward, and compares the results."""
    variants = _variants(op)
    case = variants[variant % len(variants)]
    x = case.operands()
    for what, name in changes:
        x = _changed(x, what, name)
    got = _results(case, x)
    try:
        expected = _results(case, x, type(case).definition)
    except (IndexError, AttributeError) as error:  # a reference checks less
        expected = str(error)
    if all(what in VALID for what, _ in changes):
        assert isinstance(got, dict), f"{case} refuses {changes}: {got}"
        assert isinstance(expected, dict), f"the reference of {case} refuses {changes}: {expected}"
    if not isinstance(got, dict):
        return "refused"
    if not isinstance(expected, dict):
        return "refused by the reference alone"
    for name, want in expected.items():
        have = got[name]
        assert have.shape == want.shape, f"{case}: {name} is {have.shape}, not {want.shape} after {changes}"
        if want.numel() and want.dtype in TOLERANCES and want.isfinite().all():
            error, size = (have.to(want.dtype) - want).abs().max().item(), want.abs().max().item()
            limit = 10 * TOLERANCES[want.dtype].largest * max(size, 1.0)
            assert error <= limit, f"{case}: {name} is off by {error} of {size} after {changes}"
    return "equal"


def _results(case: Case, x: Operands, op: Callable[..., Any] | None = None) -> dict[str, Tensor] | str:
    """Outputs and gradients by name, or the message of a refusal."""
    try:
        outputs = case.call(x, op)
        leaves = {n: t for n, t in x.inputs.items() if isinstance(t, Tensor) and t.requires_grad}
        computed = [t for t in outputs.values() if t.requires_grad]
        if not computed or not leaves:
            return {name: t.detach() for name, t in outputs.items()}
        upstream = [torch.ones_like(t) for t in computed]
        grads = torch.autograd.grad(computed, list(leaves.values()), upstream, allow_unused=True)
    except REFUSALS as error:
        assert str(error).strip(), "an error without a message"
        return str(error)
    except AttributeError as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        assert "python_tests" in last, f"{last}: {error}"  # the case itself reads shapes of its operands
        return "not called"
    named = {f"d_{name}": t for name, t in zip(leaves, grads, strict=True) if t is not None}
    return {name: t.detach() for name, t in (outputs | named).items()}


def _changed(x: Operands, what: str, name: str) -> Operands:
    if name == "cu_seqlens":
        return replace(x, cu_seqlens=OFFSETS[what](x.cu_seqlens))
    if not isinstance(x.inputs.get(name), Tensor):
        return x
    value = {**LAYOUTS, **CHANGES}[what](x.inputs[name].detach())
    if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
        value = value.detach().requires_grad_()
    return replace(x, inputs=x.inputs | {name: value})
