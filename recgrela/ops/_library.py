"""Loads the compiled library, which defines the operators torch.ops.recgrela.*, and completes them in Python.

C++ declares an operator's schema and its kernels. `register_operator` adds what PyTorch needs beside them:
shape functions, gradients and a count of operations. `call_operator` calls an operator with little work on
the host.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch  # its libraries must be loaded before ours
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

try:
    import recgrela._C as _C
except ImportError as error:
    where = Path(__file__).parents[2]
    raise ImportError(
        f"recgrela's compiled library is missing or does not load ({error}). Python imports recgrela from "
        f"{where}; if that is a source tree, build it in place with `pip install -e .` there, or run from "
        "another folder to use an installed recgrela."
    ) from error

__all__ = [
    "AUTOGRAD",
    "NO_SECOND_DERIVATIVE",
    "_C",
    "call_and_pass",
    "call_operator",
    "increment_versions",
    "is_transformed",
    "may_need_gradient",
    "register_gradient",
    "register_in_place",
    "register_operator",
    "register_without_gradient",
]

NO_SECOND_DERIVATIVE = (
    "second derivatives are not implemented by recgrela's ops; use the op's *_reference function, which is "
    "plain PyTorch"
)
NO_FORWARD_MODE = (
    "forward-mode derivatives (torch.func.jvp, jacfwd, hessian) are not implemented by recgrela's ops; use "
    "torch.func.grad, vjp or jacrev, or the op's *_reference function, which is plain PyTorch"
)


class Autograd(NamedTuple):
    """The gradient of an operator: functions as in `torch.autograd.Function`.

    Attributes:
        setup, backward: functions that save tensors for the gradient, and compute it.
        passes: whether `call_and_pass` takes the operator; `backward` then has another argument, the gradient
            of the operand that is passed on.
    """

    setup: Callable[..., None]
    backward: Callable[..., Any]
    passes: bool = False


# Gradients by operator. Tests register them for a build of the same operators under another name.
AUTOGRAD: dict[str, Autograd] = {}
# The function of each operator with a gradient, and the libraries that hold its registration.
_FUNCTIONS: dict[torch._ops.OpOverload, type[torch.autograd.Function]] = {}
_PASSING_FUNCTIONS: dict[torch._ops.OpOverload, type[torch.autograd.Function]] = {}
_LIBRARIES: dict[str, torch.library.Library] = {}
_TRANSFORMS = threading.local()  # how many transforms of torch.func the current call is inside of
# A guard that dispatches operators without autograd.
_BelowAutograd = torch._C._AutoDispatchBelowAutograd


def register_operator(
    name: str,
    *,
    fake: Callable[..., Any],
    setup: Callable[..., None],
    backward: Callable[..., Any],
    fake_backward: Callable[..., Any] | None = None,
    flops: Callable[..., int] | None = None,
    flops_of_tensors: bool = False,
    passes: bool = False,
) -> None:
    """Complete an operator that C++ has declared.

    Args:
        name: name in torch.ops.recgrela.
        fake: shape function, called with the operator's arguments if their tensors are on one device.
        setup, backward: functions that save tensors for the gradient, and compute it.
        fake_backward: shape function of the operator NAME_backward, if there is one. Differentiating that
            operator raises NotImplementedError.
        flops: counts the floating-point operations of a call, from shapes in place of tensors.
        flops_of_tensors: whether `flops` takes tensors instead of shapes.
        passes: whether `call_and_pass` takes the operator, whose `backward` then has another argument.
    """
    qualified = f"recgrela::{name}"
    torch.library.register_fake(qualified, _on_one_device(name, fake))
    register_gradient(qualified, setup, backward, passes)
    AUTOGRAD[name] = Autograd(setup, backward, passes)
    if fake_backward is not None:
        derivative = f"{name}_backward"
        torch.library.register_fake(f"recgrela::{derivative}", _on_one_device(derivative, fake_backward))
        register_gradient(f"recgrela::{derivative}", _save_nothing, partial(_no_second_derivative, name))
    if flops is not None:
        register_flop_formula(getattr(torch.ops.recgrela, name), get_raw=flops_of_tensors)(flops)


def register_in_place(name: str, *, fake: Callable[..., Any], flops: Callable[..., int]) -> None:
    """Complete an operator that C++ has declared and that updates operands in place. It has no gradient.

    Args:
        name: name in torch.ops.recgrela.
        fake: shape function, called with the operator's arguments if their tensors are on one device.
        flops: counts the floating-point operations of a call, from shapes in place of tensors.
    """
    torch.library.register_fake(f"recgrela::{name}", _on_one_device(name, fake))
    operator = getattr(torch.ops.recgrela, name).default
    arguments = enumerate(operator._schema.arguments)
    updated = [i for i, argument in arguments if argument.alias_info and argument.alias_info.is_write]

    def dispatched(keys: torch._C.DispatchKeySet, *args: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            raise NotImplementedError(f"{name}: an operator in place has no gradient; call it under no_grad")
        _refuse_forward_mode(name, args)
        with _BelowAutograd():
            out = operator.redispatch(keys & torch._C._after_autograd_keyset, *args)
        increment_versions([args[i] for i in updated])
        return out

    def refused(*args: Any) -> NoReturn:
        raise NotImplementedError(
            f"{name}: torch.func.vmap does not map an operator in place; make the mapped dimension part of "
            "the batch B of its state and operands"
        )

    _library("recgrela").impl(name, dispatched, "Autograd", with_keyset=True)
    _library("recgrela").impl(name, refused, "FuncTorchBatched")
    register_flop_formula(getattr(torch.ops.recgrela, name))(flops)


def register_without_gradient(name: str, *, fake: Callable[..., Any]) -> None:
    """Complete an operator that C++ has declared and that has no gradient: differentiating it raises.

    An operator that is registered by none of these functions would lose the tangents of forward mode.

    Args:
        name: name in torch.ops.recgrela.
        fake: shape function, called with the operator's arguments if their tensors are on one device.
    """
    qualified = f"recgrela::{name}"
    torch.library.register_fake(qualified, _on_one_device(name, fake))
    register_gradient(qualified, _save_nothing, partial(_no_gradient, name))


def increment_versions(tensors: list[Tensor]) -> None:
    """Tell autograd of a change in place, so that a backward which has saved a tensor raises an error."""
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(tensors)


def _library(namespace: str) -> torch.library.Library:
    if namespace not in _LIBRARIES:
        _LIBRARIES[namespace] = torch.library.Library(namespace, "FRAGMENT")
    return _LIBRARIES[namespace]


def register_gradient(
    qualified: str, setup: Callable[..., None], backward: Callable[..., Any], passes: bool = False
) -> None:
    """Register the gradient of an operator, "namespace::name".

    It does what `torch.library.register_autograd` does, without its work at each call, such as the default
    values of the schema: the operators have none.
    """
    namespace, name = qualified.split("::")
    operator = getattr(getattr(torch.ops, namespace), name).default
    assert not any(argument.has_default_value() for argument in operator._schema.arguments)

    def forward(ctx: Any, *args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            # A function of autograd turns gradients off, but only for its own transform.
            _TRANSFORMS.depth = getattr(_TRANSFORMS, "depth", 0) + 1
            try:
                with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), _BelowAutograd():
                    output = operator(*args)
            finally:
                _TRANSFORMS.depth -= 1
        else:
            with _BelowAutograd():
                output = operator(*args)
        setup(ctx, args, output)
        return output

    # The rows come last, so that the operands keep their places in ctx.needs_input_grad.
    def forward_and_pass(ctx: Any, *args_and_rows: Any) -> Any:
        *args, rows = args_and_rows
        ctx.rows, ctx.shape = rows, args[0].shape
        return _rows_of(args[0], rows), *forward(ctx, *args)

    def backward_of_passed(ctx: Any, d_first: Tensor | None, *gradients: Tensor | None) -> Any:
        if ctx.rows is None:
            return *backward(ctx, *gradients, d_first), None
        d_whole, *others = backward(ctx, *gradients, None)
        if d_first is not None:
            if d_whole is None:
                d_whole = d_first.new_zeros(ctx.shape)
            d_whole = d_whole.index_add_(0, ctx.rows, d_first)
        return d_whole, *others, None

    def make(forward: Callable[..., Any], backward: Callable[..., Any]) -> Any:
        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        class_name = "".join(part.capitalize() for part in name.split("_"))
        return type(class_name, (torch.autograd.Function,), methods)

    function = make(forward, backward)

    def dispatched(keys: torch._C.DispatchKeySet, *args: Any) -> Any:
        _refuse_forward_mode(name, args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            if not torch._C._are_functorch_transforms_active():
                return function.apply(*args)
            # The transform has dispatched the operands of its own level, to which this function applies.
            with enable_single_level_autograd_function():
                return super(torch.autograd.Function, function).apply(*args)
        with _BelowAutograd():
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *args)

    _library(namespace).impl(name, dispatched, "Autograd", with_keyset=True)
    torch.library.register_vmap(qualified, _by_loop(operator))
    _FUNCTIONS[operator] = function
    if passes:
        _PASSING_FUNCTIONS[operator] = make(forward_and_pass, backward_of_passed)


def _by_loop(operator: torch._ops.OpOverload) -> Callable[..., Any]:
    """The rule of an operator for torch.func.vmap: a call for each index of the mapped dimension."""
    name = operator._schema.name.split("::")[1]

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        if info.batch_size == 0:
            raise ValueError(
                f"{name}: torch.func.vmap over a dimension of size 0; give it at least one index"
            )
        results = []
        for i in range(info.batch_size):
            parts = (x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True))
            results.append(operator(*parts))
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(outputs) for outputs in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return rule


def _refuse_forward_mode(name: str, args: Sequence[Any]) -> None:
    """Check that no operand has a tangent, which an operator would drop.

    Raises:
        NotImplementedError: if one has.
    """
    if forward_ad._current_level < 0:
        return
    if any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in args):
        raise NotImplementedError(f"{name}: {NO_FORWARD_MODE}")


def is_transformed() -> bool:
    """Reports whether a transform of torch.func runs, here or around autograd's own level of this call."""
    return torch._C._are_functorch_transforms_active() or getattr(_TRANSFORMS, "depth", 0) > 0


def may_need_gradient(x: Tensor | None) -> bool:
    """Reports whether the gradient of an operand may be computed.

    torch.func.vmap hides from a tensor that a transform around it differentiates.
    """
    if x is None or not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling():  # which cannot trace the question
        return x.requires_grad
    return x.requires_grad or torch._C._are_functorch_transforms_active()


def call_operator(name: str, *args: Any) -> Any:
    """Call torch.ops.recgrela.NAME, with the same result and a fraction of its work on the host.

    Outside of tracing and of functorch's transforms the dispatcher would only convert the arguments for the
    function that `register_gradient` made, so that function is called directly.
    """
    operator = getattr(torch.ops.recgrela, name).default
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return operator(*args)
    _refuse_forward_mode(name, args)
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
        return _FUNCTIONS[operator].apply(*args)
    with _BelowAutograd():
        return operator(*args)


def call_and_pass(name: str, *args: Any, rows: Tensor | None = None) -> Any:
    """Call an operator on an operand that is used again, and pass that operand on.

    If what follows takes the operand that is returned, its gradient arrives in the operator's backward, which
    can add it in the store of the operand's gradient; otherwise autograd adds the two. An operator cannot
    return an operand, but a function of autograd can: PyTorch makes it a view.

    Args:
        name: name in torch.ops.recgrela.
        args: the operator's arguments.
        rows: int64 [B], distinct rows of the first operand to pass on, whose gradient is added to the rows of
            the operand's; None: all.

    Returns:
        The first operand or its rows, followed by the operator's outputs, of which there are several.
    """
    first = args[0]
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or not (torch.is_grad_enabled() and first.requires_grad)
    ):
        return _rows_of(first, rows), *call_operator(name, *args)
    return _PASSING_FUNCTIONS[getattr(torch.ops.recgrela, name).default].apply(*args, rows)


def _rows_of(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _on_one_device(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Adds a check of devices: PyTorch calls a shape function if a single operand is on the meta device."""

    def checked(*args: Any) -> Any:
        devices = {x.device for x in args if isinstance(x, Tensor)}
        if len(devices) > 1:
            found = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"{name}: operands on several devices: {found}; they must agree")
        return fake(*args)

    return checked


def _no_second_derivative(name: str, ctx: object, *gradients: object) -> NoReturn:
    raise NotImplementedError(f"{name}: {NO_SECOND_DERIVATIVE}")


def _no_gradient(name: str, ctx: object, *gradients: object) -> NoReturn:
    raise NotImplementedError(f"{name}: it has no gradient; call it under no_grad")


def _save_nothing(ctx: object, inputs: object, output: object) -> None:
    pass
