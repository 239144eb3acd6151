"""Two linear layers with an activation between them and dropout behind each, by blocks of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrela.ops._library import no_second_derivative, skip_setup
from recgrela.ops.checks import check_devices, check_operands
from recgrela.ops.dropout import check_dropout, dropout_reference, new_seeds

MLPActivation = Literal["none", "relu", "silu", "gelu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
}


def mlp_reference(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    activation: MLPActivation = "gelu",
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """The definition of `mlp` in plain PyTorch; without a seed there is no dropout."""

    def drop(x: Tensor, index: int) -> Tensor:
        return x if seed is None else dropout_reference(x, dropout, seed[index])

    return drop(F.linear(drop(ACTIVATIONS[activation](F.linear(x, w1, b1)), 0), w2, b2), 1)


def mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    activation: MLPActivation = "gelu",
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """drop(drop(act(x @ w1.T + b1)) @ w2.T + b2) on the CPU; the wide rows in the middle never reach memory.

    The backward makes them again from `x`, which is all that is kept.

    Args:
        x: [T, I], any row stride; float32 or float64.
        w1, b1: [F, I], [F].
        w2, b2: [O, F], [O].
        activation: "none", "relu", "silu" or "gelu" (the exact one, by erf).
        dropout: rate of both dropouts, as for `recgrela.ops.dropout`.
        seed: [2] int64, of one dropout each; None draws them from torch's generator.

    Returns:
        [T, O], of the dtype of `x`.

    Raises:
        ValueError: on shapes, devices, the activation or the rate; TypeError: on dtypes.
        NotImplementedError: from a second derivative, or on a device without a kernel; use `mlp_reference`.
    """
    op = "mlp"
    if x.device.type not in ("cpu", "meta"):
        raise NotImplementedError(f"{op}: there is no kernel for {x.device.type}; use mlp_reference")
    if activation not in get_args(MLPActivation):
        names = ", ".join(get_args(MLPActivation))
        raise ValueError(f"{op}: activation must be one of {names}, got {activation!r}")
    if x.dim() != 2 or w1.dim() != 2 or w2.dim() != 2 or 0 in (x.shape[1], *w1.shape, *w2.shape):
        raise ValueError(
            f"{op}: x must be [T, I], w1 [F, I] and w2 [O, F], no width 0, got {tuple(x.shape)}, "
            f"{tuple(w1.shape)} and {tuple(w2.shape)}"
        )
    hidden = w1.shape[0]
    check_operands(
        op,
        "x",
        x,
        w1=(w1, ("F", x.shape[1])),
        b1=(b1, (hidden,)),
        w2=(w2, ("O", hidden)),
        b2=(b2, (w2.shape[0],)),
    )
    check_dropout(op, dropout, seed, 2, x.device)
    if not dropout:
        seed = None
    elif seed is None:
        seed = new_seeds(2, x.device)
    return torch.ops.recgrela.mlp(x, w1, b1, w2, b2, seed, activation, float(dropout))


@torch.library.register_fake("recgrela::mlp")
def _fake(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    seed: Tensor | None,
    activation: str,
    rate: float,
) -> Tensor:
    check_devices("mlp", x, w1, b1, w2, b2, seed)
    return x.new_empty(x.shape[0], w2.shape[0])


@torch.library.register_fake("recgrela::mlp_backward")
def _fake_backward(
    dy: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    seed: Tensor | None,
    activation: str,
    rate: float,
) -> tuple[Tensor, ...]:
    check_devices("mlp_backward", dy, x, w1, b1, w2, b2, seed)
    return tuple(t.new_empty(t.shape) for t in (x, w1, b1, w2, b2))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation, ctx.rate = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.recgrela.mlp_backward(dy, *ctx.saved_tensors, ctx.activation, ctx.rate)
    return *grads, None, None, None


torch.library.register_autograd("recgrela::mlp", _backward, setup_context=_setup)
torch.library.register_autograd("recgrela::mlp_backward", no_second_derivative, setup_context=skip_setup)
torch.library.register_autocast("recgrela::mlp", "cpu", torch.float32)
