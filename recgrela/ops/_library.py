"""Loads the compiled library, which registers the operators under torch.ops.recgrela."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import torch  # its libraries must be loaded before ours

try:
    import recgrela._C as _C
except ImportError as error:
    where = Path(__file__).parents[2]
    raise ImportError(
        f"recgrela's compiled library is missing or does not load ({error}). Python imports recgrela from "
        f"{where}; if that is a source tree, build it in place with `pip install -e .` there, or run from "
        "another folder to use an installed recgrela."
    ) from error

__all__ = ["_C", "has_kernels", "no_second_derivative", "skip_setup"]


def has_kernels(device_type: str) -> bool:
    """Whether this build has kernels for tensors on such a device, "cpu" or "cuda"."""
    key = torch.device(device_type).type.upper()
    return torch._C._dispatch_has_kernel_for_dispatch_key("recgrela::gated_rela", key)


NO_SECOND_DERIVATIVE = (
    "second derivatives are not implemented by recgrela's ops; use the op's *_reference function, which is "
    "plain PyTorch"
)


def no_second_derivative(ctx: object, *grads: object) -> NoReturn:
    """The autograd formula of a backward op: double backward is an error that says what to do instead."""
    raise NotImplementedError(NO_SECOND_DERIVATIVE)


def skip_setup(ctx: object, inputs: object, output: object) -> None:
    """An autograd formula that always raises keeps nothing for its backward."""
