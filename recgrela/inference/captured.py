"""A model's step as a recorded list of operator calls, without the work of the modules between them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from recgrela.models import SequenceModel
from recgrela.nn import ModelState

# The largest batch that is recorded. In larger ones the modules' work is small beside that of the operators.
MAX_BATCH = 8
VIEWS = {torch.ops.aten.t.default, torch.ops.aten.squeeze.dim, torch.ops.aten.view.default}


class CapturedStep:
    """`model.step`, with the operator calls of each small batch size recorded at its first use.

    For one user, the operators of a step take less time than the modules that call them: checks of operands,
    autocast, views of weights. A recorded step calls the same operators with the same operands and computes
    the same bits. Weights that change in place are used as they are; a model whose weights are replaced by
    other tensors (`model.to`, `load_state_dict(assign=True)`) needs a new CapturedStep.

    Args:
        model: a model in eval mode that carries states (`carries_state`); others run as they are.
    """

    def __init__(self, model: SequenceModel) -> None:
        self.model = model
        self._recorded: dict[int, Callable[..., Tensor]] = {}
        self._names = list(model.init_state(0))

    @torch.inference_mode()
    def __call__(self, items: Tensor, state: ModelState) -> Tensor:
        """See `SequenceModel.step`, whose arguments, result and errors it has."""
        batch = items.shape[0]
        if batch > MAX_BATCH or batch != state.batch or self.model.training or not self.model.carries_state:
            return self.model.step(items, state)
        if batch not in self._recorded:
            self._recorded[batch] = self._record(items, state)
        return self._recorded[batch](items, *state.values())

    def warm_up(self, batch_sizes: range = range(1, MAX_BATCH + 1)) -> None:
        """Records the steps of some batch sizes, so that no later call has to."""
        for batch in batch_sizes:
            state = self.model.init_state(batch)
            self(torch.ones(batch, dtype=torch.int64, device=state.device), state)

    def _record(self, items: Tensor, state: ModelState) -> Callable[..., Tensor]:
        def step(items: Tensor, *tensors: Tensor) -> Tensor:
            return self.model.step(items, ModelState(dict(zip(self._names, tensors, strict=True))))

        # The first step fills caches, such as that of the rotary frequencies. Both steps change copies only.
        self.model.step(items, state.clone())
        module = make_fx(step)(items.clone(), *state.clone().values())
        module.graph.eliminate_dead_code()
        return with_constants(module)


def with_constants(module: torch.fx.GraphModule) -> Callable[..., Tensor]:
    """A recorded function whose weights are arguments, because a module looks attributes up slowly.

    Views of weights, such as transposes, are made once. They share the weights' memory, changes included.
    """
    graph = module.graph
    constants: dict[torch.fx.Node, Tensor] = {}
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if node.op == "get_attr":
            value = getattr(module, node.target)
        elif node.target in VIEWS and node.args[0] in constants:
            value = node.target(constants[node.args[0]], *node.args[1:], **node.kwargs)
        else:
            continue
        with graph.inserting_after(last):
            last = graph.placeholder(f"constant_{len(constants)}")
        constants[last] = value
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    module.recompile()
    forward, values = module.forward, tuple(constants.values())
    return lambda *operands: forward(*operands, *values)
