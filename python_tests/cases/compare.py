"""Errors of results, and tolerances."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Error(NamedTuple):
    """Relative errors: by norm, |error| / |expected|, and largest error / largest expected value."""

    norm: float
    largest: float


LABELS = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.complex128: "complex128",
    torch.complex64: "complex64",
}
# The largest error relative to the largest expected value, for small operands.
MAX_ERRORS = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.complex128: 1e-10,
    torch.complex64: 2e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}
# Tolerances for operands of any size.
TOLERANCES = {
    torch.float64: Error(1e-11, 1e-10),
    torch.complex128: Error(1e-11, 1e-10),
    torch.float32: Error(5e-5, 5e-4),
    torch.complex64: Error(5e-5, 5e-4),
    torch.float16: Error(3e-3, 1.5e-2),
    torch.bfloat16: Error(1.5e-2, 5e-2),
}
# Tolerances for other implementations, which may use TF32 or accumulate in half precision.
PEER_TOLERANCES = {
    torch.float64: Error(1e-9, 1e-8),
    torch.complex128: Error(1e-9, 1e-8),
    torch.float32: Error(1e-2, 5e-2),
    torch.complex64: Error(1e-2, 5e-2),
    torch.float16: Error(5e-2, 2e-1),
    torch.bfloat16: Error(1e-1, 3e-1),
}


def errors_of(expected: dict[str, Tensor], got: dict[str, Tensor]) -> dict[str, Error]:
    """Errors by name. If `expected` has fewer rows than `got`, only the first rows are compared."""
    errors = {}
    for name, want in expected.items():
        have = got[name][: len(want)].to(want.device, want.dtype)
        difference = have - want
        largest = (difference.abs().max() / want.abs().max()).item()
        errors[name] = Error((difference.norm() / want.norm()).item(), largest)
    return errors


def fault_of(errors: dict[str, Error], tolerance: Error) -> str:
    """Describes the errors beyond the tolerance, NaN included; "" if there are none."""
    return ", ".join(
        f"{name} off by {error.norm:.1e} (norm), {error.largest:.1e} (largest)"
        for name, error in errors.items()
        if not (error.norm <= tolerance.norm and error.largest <= tolerance.largest)
    )


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names of the results whose bits differ."""
    return [name for name, x in first.items() if not torch.equal(x, second[name])]
