"""What a model's gates and states look like after a history, layer by layer and head by head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recgrela.inference.encoding import evaluating
from recgrela.models import SequenceModel
from recgrela.nn import GatedRotaryLinearAttention, Stateful
from recgrela.nn.state import ModelState
from recgrela.ops.mlp import ACTIVATIONS


@dataclass(frozen=True)
class LayerStates:
    """One layer of a model, for one user.

    Attributes:
        name: the module's name.
        state: norm of the state of each head. Of linear attention, whose state is a sum over items, it is the
            Frobenius norm of the mean; of a recurrence, which has no heads, the norm of the whole state.
        gate: root mean square of the activated gate of each head at the last item; None without a gate.
    """

    name: str
    state: list[float]
    gate: list[float] | None


def state_norms(model: SequenceModel, state: ModelState, row: int) -> dict[str, list[float]]:
    """The norms of the states of each layer's heads, by the layer's name; see `LayerStates`."""
    norms = {}
    for name, module in model.named_modules():
        if not isinstance(module, Stateful):
            continue
        if isinstance(module, GatedRotaryLinearAttention):
            tensor = state[f"{name}.kv_state"][row] / max(int(state["position"][row]), 1)
        else:
            tensor = state[f"{name}.scan"][row][None]
        norms[name] = torch.linalg.vector_norm(tensor.flatten(1), dim=1).tolist()
    return norms


def gates(model: SequenceModel, items: Tensor) -> dict[str, list[float]]:
    """The gates at the last item of a history, by the layer's name; see `LayerStates`.

    Args:
        model: a model that carries states.
        items: [T] int64 item ids, not empty.
    """
    found: dict[str, list[float]] = {}
    offsets = torch.tensor([0, len(items)], device=items.device)
    with evaluating(model), _recorded(model, found):
        model.hidden_states(items, offsets, len(items), False)
    return found


def inspect(model: SequenceModel, state: ModelState, row: int, items: Tensor) -> list[LayerStates]:
    """The layers of a model after a history; empty for a model whose state is the history's last items.

    Args:
        model: the model.
        state: states of users.
        row: the user.
        items: [T] int64, the last items of the user's history, from which gates are computed.
    """
    if not model.carries_state:
        return []
    opened = gates(model, items)
    return [
        LayerStates(name, norms, opened.get(name)) for name, norms in state_norms(model, state, row).items()
    ]


@contextmanager
def _recorded(model: SequenceModel, found: dict[str, list[float]]) -> Iterator[None]:
    """A context in which each attention layer records its gates at the last row of a pass.

    Kernels may fuse a gate's projection, so that it is computed again from the layer's input.
    """
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, GatedRotaryLinearAttention) and module.gate_proj is not None:

            def record(layer: Any, inputs: tuple[Any, ...], name: str = name) -> None:
                norm, x, branch, sequences = inputs
                _, rows = norm(x, branch, sequences)
                gate = ACTIVATIONS[layer.gate_activation](layer.gate_proj(rows[-1:]))
                heads = gate.float().unflatten(1, (layer.num_heads, -1))[0]
                found[name] = heads.square().mean(1).sqrt().tolist()

            handles.append(module.register_forward_pre_hook(record))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
