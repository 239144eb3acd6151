"""The table of kernels: which op has one on which type of device, for which dtypes and sizes.

Every op runs on every device. The table says how:

- "kernel": the compiled kernel of the device;
- "composition": plain PyTorch, written for speed;
- "reference": the definition in plain PyTorch. It is slow (a loop over rows, or all pairs of rows), waits for
  the device and does not compile into a full graph.

Half-precision operands that no kernel takes as they are become float32, and the results half precision again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

import recgrela.ops._library  # noqa: F401  defines the operators
from recgrela.ops.checks import state_dtype, without_autocast

Kind = Literal["kernel", "composition", "reference"]


@dataclass(frozen=True)
class Kernel:
    """What the kernel of an op takes on one type of device.

    Attributes:
        dtypes: dtypes of the operands.
        head_widths: channels of a head; None: any even number.
        max_kernel_size: the longest convolution; None: any.
        max_states: the most states of a channel; None: any number.
    """

    dtypes: tuple[torch.dtype, ...]
    head_widths: tuple[int, ...] | None = None
    max_kernel_size: int | None = None
    max_states: int | None = None

    def takes(self, dtype: torch.dtype, head_width: int, kernel_size: int, num_states: int) -> bool:
        return (
            dtype in self.dtypes
            and (self.head_widths is None or head_width == 0 or head_width in self.head_widths)
            and (self.max_kernel_size is None or kernel_size <= self.max_kernel_size)
            and (self.max_states is None or num_states <= self.max_states)
        )


class Implementation(NamedTuple):
    """How an op runs: by what, and the dtype that it computes in."""

    kind: Kind
    dtype: torch.dtype


class Op:
    """One op of `recgrela.ops`: its kernels and what runs without them.

    Args:
        name: of the public function.
        kernels: by type of device.
        fallback: runs where no kernel does, called with the operator's arguments; None: the operator itself
            has a default implementation.
        fallback_kind: how `fallback` is written.
        outputs_like_operands: which of several outputs have the operands' dtype; the others have their own.
        operator: its name below torch.ops.recgrela, if not that of the function.
        kernel: runs the kernel, called with the operator's arguments; None: the operator itself.
    """

    def __init__(
        self,
        name: str,
        kernels: Mapping[str, Kernel],
        fallback: Callable[..., Any] | None,
        fallback_kind: Literal["composition", "reference"] = "reference",
        *,
        outputs_like_operands: tuple[int, ...] = (0,),
        operator: str | None = None,
        kernel: Callable[..., Any] | None = None,
    ) -> None:
        self.name, self.kernels, self.fallback_kind = name, dict(kernels), fallback_kind
        self.operator = operator or name
        self._outputs_like_operands = outputs_like_operands
        self._kernel, self._fallback = kernel, fallback
        OPS[name] = self
        for device_type in self.kernels:
            for operator in self.operators():
                if not _registered(operator, device_type):
                    MISSING.setdefault(device_type, []).append(operator)
                    _raise_not_built(operator, device_type)

    def operators(self) -> Iterator[str]:
        """The operators that need kernels: the op's and that of its gradient, where there is one."""
        yield self.operator
        if hasattr(torch.ops.recgrela, f"{self.operator}_backward"):
            yield f"{self.operator}_backward"

    def implementation(
        self,
        device_type: str,
        dtype: torch.dtype,
        head_width: int = 0,
        kernel_size: int = 0,
        num_states: int = 0,
    ) -> Implementation:
        """Which implementation takes operands of `dtype` on a device; sizes of 0 do not matter."""
        kernel = self.kernels.get(device_type)
        computed = dtype
        if kernel is not None and not kernel.takes(dtype, head_width, kernel_size, num_states):
            computed = dtype if dtype.is_complex else state_dtype(dtype)
            if not kernel.takes(computed, head_width, kernel_size, num_states):
                kernel = None
        if kernel is not None or device_type == "meta":  # the shape function
            return Implementation("kernel", computed)
        if self.fallback_kind == "reference" and not dtype.is_complex:
            computed = state_dtype(dtype)
        return Implementation(self.fallback_kind, computed)

    def run(
        self, like: Tensor, *args: Any, head_width: int = 0, kernel_size: int = 0, num_states: int = 0
    ) -> Any:
        """Call the operator, or what stands in for it.

        Args:
            like: the operand that sets the device and the dtype.
            args: the operator's arguments.

        Returns:
            The operator's outputs.
        """
        device_type, dtype = like.device.type, like.dtype
        kind, computed = self.implementation(device_type, dtype, head_width, kernel_size, num_states)
        if kind == "kernel" and computed == dtype:
            return self._call(*args)
        args = tuple(x.to(computed) if isinstance(x, Tensor) and x.dtype == dtype else x for x in args)
        if kind == "kernel":
            out = self._call(*args)
        else:
            assert self._fallback is not None
            with without_autocast(device_type):
                out = self._fallback(*args)
        if isinstance(out, Tensor):
            return out.to(dtype)
        like_operands = self._outputs_like_operands
        return tuple(x.to(dtype) if i in like_operands and x is not None else x for i, x in enumerate(out))

    def _call(self, *args: Any) -> Any:
        return (self._kernel or getattr(torch.ops.recgrela, self.operator))(*args)


OPS: dict[str, Op] = {}
# Operators that the table promises and this build lacks, by type of device.
MISSING: dict[str, list[str]] = {}


def _registered(operator: str, device_type: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"recgrela::{operator}", device_type.upper())


def _raise_not_built(operator: str, device_type: str) -> None:
    """Makes a call an error that says what to do."""

    def raise_not_built(*args: object) -> None:
        raise NotImplementedError(
            f"{operator}: this build of recgrela has no {device_type} kernels; install it with a CUDA "
            "compiler (docs/install.md), or call the op's *_reference function"
        )

    torch.library.impl(f"recgrela::{operator}", device_type.upper())(raise_not_built)


def has_kernels(device_type: str) -> bool:
    """Reports whether this build has every kernel of the table for a type of device, "cpu" or "cuda"."""
    device_type = torch.device(device_type).type
    return device_type not in MISSING and any(device_type in op.kernels for op in OPS.values())


def implementation_for(
    op: str,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    head_width: int = 0,
    kernel_size: int = 0,
    num_states: int = 0,
) -> Implementation:
    """Which implementation of an op takes such operands.

    Args:
        op: the name of a function of `recgrela.ops`.
        device: of the operands.
        dtype: of the operands, after autocast.
        head_width: channels of a head, for `gated_rela` and `gated_rela_last`.
        kernel_size: of the convolution, for `gated_rela` and `causal_conv1d`.
        num_states: states of a channel, for `selective_scan`.

    Returns:
        ("kernel", "composition" or "reference", the dtype computed in).

    Raises:
        ValueError: on an unknown op.
    """
    if op not in OPS:
        raise ValueError(f"implementation_for: {op!r} is not an op; expected one of {', '.join(OPS)}")
    return OPS[op].implementation(torch.device(device).type, dtype, head_width, kernel_size, num_states)


def support_table() -> str:
    """The table of kernels in Markdown."""
    lines = ["| op | CPU kernel | CUDA kernel | otherwise |", "| --- | --- | --- | --- |"]
    for op in OPS.values():
        kernels = (_describe(op.kernels.get(device_type)) for device_type in ("cpu", "cuda"))
        lines.append(f"| `{op.name}` | {' | '.join(kernels)} | {op.fallback_kind} |")
    return "\n".join(lines) + "\n"


def _describe(kernel: Kernel | None) -> str:
    if kernel is None:
        return "none"
    parts = [", ".join(str(dtype).removeprefix("torch.") for dtype in kernel.dtypes)]
    if kernel.head_widths is not None:
        parts.append(f"heads of {', '.join(map(str, kernel.head_widths))} channels")
    if kernel.max_kernel_size is not None:
        parts.append(f"kernel size up to {kernel.max_kernel_size}")
    if kernel.max_states is not None:
        parts.append(f"up to {kernel.max_states} states")
    return "; ".join(parts)
