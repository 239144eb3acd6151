"""The table of kernels: for each op and type of device, the dtypes and sizes that its kernel takes.

Every op runs on every device, through one of three kinds of implementation:

- "kernel": the compiled kernel of the device;
- "composition": plain PyTorch, written for speed;
- "reference": the definition in plain PyTorch. It is slow (a loop over rows, or all pairs of rows), waits for
  the device and does not compile into a full graph.

For half-precision operands, references and kernels that do not take them compute in float32 and round the
results; compositions compute in the dtype of the operands.

If an op has a kernel for CUDA that does not take the operands, a warning says so, once for each reason.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from recgrela.ops._library import call_operator, increment_versions
from recgrela.ops.checks import state_dtype, without_autocast

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on

Kind = Literal["kernel", "composition", "reference"]


class Sizes(TypedDict, total=False):
    """Sizes of operands that kernels may limit. One that is absent or 0 is not checked.

    Attributes:
        head_dim: channels of a head.
        kernel_size: size of the convolution.
        num_states: states of a channel.
        widths: widths of rows and of hidden layers.
    """

    head_dim: int
    kernel_size: int
    num_states: int
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """Operands that the kernel of an op takes on one type of device.

    Attributes:
        dtypes: dtypes of the operands.
        head_dims: numbers of channels of a head; None: any even number.
        max_kernel_size: largest kernel size of the convolution; None: any.
        max_states: largest number of states of a channel; None: any.
        widths: widths of rows; None: any.
        float32_widths: widths of float32 rows, if they differ.
    """

    dtypes: tuple[torch.dtype, ...]
    head_dims: tuple[int, ...] | None = None
    max_kernel_size: int | None = None
    max_states: int | None = None
    widths: range | None = None
    float32_widths: range | None = None

    def refused(self, dtype: torch.dtype, sizes: Sizes) -> str:
        """Describes the first property of operands that the kernel does not take; "" if it takes them."""
        if dtype not in self.dtypes:
            return str(dtype).removeprefix("torch.")
        if self.head_dims is not None and sizes.get("head_dim", 0) not in (0, *self.head_dims):
            return f"heads of {sizes['head_dim']} channels"
        if self.max_kernel_size is not None and sizes.get("kernel_size", 0) > self.max_kernel_size:
            return f"kernel size {sizes['kernel_size']}"
        if self.max_states is not None and sizes.get("num_states", 0) > self.max_states:
            return f"{sizes['num_states']} states"
        accepted = self.widths if dtype != torch.float32 else self.float32_widths or self.widths
        if accepted is not None:
            for width in sizes.get("widths", ()):
                if width not in accepted:
                    return f"width {width}"
        return ""


class _Switch(threading.local):
    """Whether the thread is in `plain_pytorch`. torch.compile reads no context variables."""

    on: bool = False


_PLAIN = _Switch()


@contextmanager
def plain_pytorch() -> Iterator[None]:
    """A context in which the thread's ops run their compositions, so that traces have no operator of ours.

    An op without a composition raises NotImplementedError: its reference waits for the device, which a trace
    cannot.
    """
    before, _PLAIN.on = _PLAIN.on, True
    try:
        yield
    finally:
        _PLAIN.on = before


class Implementation(NamedTuple):
    """How an op runs.

    Attributes:
        kind: "kernel", "composition" or "reference".
        dtype: dtype that the op computes in.
    """

    kind: Kind
    dtype: torch.dtype


class Op:
    """One op of `recgrela.ops`: its kernels, and the fallback for operands that they do not take.

    Args:
        name: name of the public function.
        kernels: kernels by type of device.
        fallback: function of the operator's arguments that runs if no kernel does; None if the public
            function or the operator provides its own.
        fallback_kind: kind of the fallback.
        outputs_like_operands: indices of the outputs with the operands' dtype; the others are states or
            positions, with a dtype of their own.
        parts: names of the ops that a composition consists of, if it is not plain PyTorch.
        in_place: indices of the arguments that the op updates in place. Such an op has no gradient.
    """

    def __init__(
        self,
        name: str,
        kernels: Mapping[str, Kernel],
        fallback: Callable[..., Any] | None,
        fallback_kind: Literal["composition", "reference"] = "reference",
        *,
        outputs_like_operands: tuple[int, ...] = (0,),
        parts: tuple[str, ...] = (),
        in_place: tuple[int, ...] = (),
    ) -> None:
        self.name, self.kernels, self.fallback_kind = name, dict(kernels), fallback_kind
        self._outputs_like_operands, self._parts = outputs_like_operands, parts
        self._fallback, self.in_place = fallback, in_place
        OPS[name] = self
        for device_type in self.kernels:
            for operator in self.operators():
                if not _registered(operator, device_type):
                    MISSING.setdefault(device_type, []).append(operator)
                    _register_error(operator, device_type)

    def operators(self) -> Iterator[str]:
        """The operators that need kernels: the op's and, if there is one, its gradient's."""
        yield self.name
        if hasattr(torch.ops.recgrela, f"{self.name}_backward"):
            yield f"{self.name}_backward"

    def implementation(
        self,
        device_type: str,
        dtype: torch.dtype,
        *,
        warn: bool = True,
        **sizes: Unpack[Sizes],
    ) -> Implementation:
        """The implementation for operands of `dtype` on a device.

        Args:
            device_type, dtype: device and dtype of the operands.
            sizes: sizes of the operands.
            warn: whether to warn, once for each reason, if the kernel for CUDA does not take the operands.

        Raises:
            NotImplementedError: in `plain_pytorch`, if the op has no composition.
        """
        if _PLAIN.on:
            is_operator = isinstance(self._fallback, torch._ops.OpOverloadPacket)
            if self.fallback_kind != "composition" or is_operator:
                raise NotImplementedError(f"{self.name} has no composition in plain PyTorch")
            return Implementation("composition", dtype)
        if device_type == "meta":
            return Implementation("kernel", dtype)  # its shape function
        kernel = self.kernels.get(device_type)
        accumulate = dtype if dtype.is_complex else state_dtype(dtype)
        if kernel is not None:
            for computed in (dtype, accumulate):
                if not kernel.refused(computed, sizes):
                    return Implementation("kernel", computed)
            if warn and device_type == "cuda" and not torch.compiler.is_compiling():
                accepted = dtype if dtype in kernel.dtypes else accumulate
                self.warn_once(kernel.refused(accepted, sizes))
        return Implementation(
            self.fallback_kind, dtype if self.fallback_kind == "composition" else accumulate
        )

    def warn_once(self, refused: str) -> None:
        """Warn that the fallback runs on a GPU, once for each reason; the kernel does not take `refused`."""
        if (self.name, refused) in WARNED:
            return
        WARNED.add((self.name, refused))
        slow = " slowly" if self.fallback_kind == "reference" else ""
        runs = f"the {self.fallback_kind} in plain PyTorch runs{slow}"
        if self._parts:
            runs = f"{' and '.join(self._parts)} run one after the other"
        warnings.warn(
            f"{self.name}: the CUDA kernel does not take {refused}, so {runs}; docs/ops.md lists what "
            "kernels take",
            stacklevel=4,
        )

    def run(self, like: Tensor, *args: Any, **sizes: Unpack[Sizes]) -> Any:
        """Run the kernel or, if it does not take the operands, the fallback.

        Args:
            like: operand that sets the device and the dtype.
            args: the operator's arguments.
            sizes: sizes of the operands.

        Returns:
            The operator's outputs.
        """
        device_type, dtype = like.device.type, like.dtype
        kind, computed = self.implementation(device_type, dtype, **sizes)
        if kind == "kernel" and computed == dtype:
            out = call_operator(self.name, *args)
            if self.in_place:
                increment_versions([args[i] for i in self.in_place])
            return out
        given = args
        if computed != dtype:
            args = tuple(x.to(computed) if isinstance(x, Tensor) and x.dtype == dtype else x for x in args)
        if kind == "kernel":
            out = call_operator(self.name, *args)
        else:
            assert self._fallback is not None
            with without_autocast(device_type):
                out = self._fallback(*args)
        for i in self.in_place:
            if args[i] is not given[i]:
                given[i].copy_(args[i])
        if isinstance(out, Tensor):
            return out.to(dtype)
        like_operands = self._outputs_like_operands
        return tuple(x.to(dtype) if i in like_operands and x is not None else x for i, x in enumerate(out))


OPS: dict[str, Op] = {}
# Ops and properties of operands that a warning has named.
WARNED: set[tuple[str, str]] = set()
# Operators of the table without a kernel in this build, by type of device.
MISSING: dict[str, list[str]] = {}


def _registered(operator: str, device_type: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"recgrela::{operator}", device_type.upper())


def _register_error(operator: str, device_type: str) -> None:
    """Registers a function that raises an error, in place of a kernel that this build lacks."""

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
    head_dim: int = 0,
    kernel_size: int = 0,
    num_states: int = 0,
    widths: tuple[int, ...] = (),
) -> Implementation:
    """Reports which implementation of an op runs.

    Args:
        op: name of a function of `recgrela.ops`.
        device: device of the operands.
        dtype: dtype of the operands, after autocast.
        head_dim: channels of a head, for `gated_rela` and `gated_rela_last`.
        kernel_size: size of the convolution, for `gated_rela` and `causal_conv1d`.
        num_states: states of a channel, for `selective_scan`.
        widths: widths of rows and of hidden layers, for ops whose kernels limit them.

    Returns:
        The kind of implementation and the dtype that it computes in.

    Raises:
        ValueError: on an unknown op.
    """
    if op not in OPS:
        raise ValueError(f"implementation_for: {op!r} is not an op; expected one of {', '.join(sorted(OPS))}")
    sizes = Sizes(head_dim=head_dim, kernel_size=kernel_size, num_states=num_states, widths=widths)
    return OPS[op].implementation(torch.device(device).type, dtype, **sizes, warn=False)


def support_table() -> str:
    """The table of kernels in Markdown."""
    lines = ["| op | CPU kernel | CUDA kernel | otherwise |", "| --- | --- | --- | --- |"]
    for _, op in sorted(OPS.items()):
        kernels = (_describe(op.kernels.get(device_type)) for device_type in ("cpu", "cuda"))
        lines.append(f"| `{op.name}` | {' | '.join(kernels)} | {op.fallback_kind} |")
    return "\n".join(lines) + "\n"


def _describe(kernel: Kernel | None) -> str:
    if kernel is None:
        return "none"
    parts = [", ".join(str(dtype).removeprefix("torch.") for dtype in kernel.dtypes)]
    if kernel.head_dims is not None:
        parts.append(f"heads of {', '.join(map(str, kernel.head_dims))} channels")
    if kernel.max_kernel_size is not None:
        parts.append(f"kernel size up to {kernel.max_kernel_size}")
    if kernel.max_states is not None:
        parts.append(f"up to {kernel.max_states} states")
    if kernel.widths is not None:
        low, high, step = kernel.widths[0], kernel.widths[-1], kernel.widths.step
        narrow = f" (float32: {kernel.float32_widths[-1]})" if kernel.float32_widths else ""
        parts.append(f"widths {low} to {high}{narrow} in steps of {step}")
    return "; ".join(parts)
