"""One training step: from a batch to new weights, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recgrela.data import Batch
from recgrela.data.filling import Filling
from recgrela.models import SequenceModel
from recgrela.models.base import PER_ITEM
from recgrela.ops.linear_cross_entropy import unit_gradient
from recgrela.parallel.processes import Processes
from recgrela.parallel.table import ShardedTable
from recgrela.settings.train import TrainConfig
from recgrela.system.errors import ConfigError
from recgrela.system.graphs import Capture, GraphedFunction


class TrainStep:
    """Accumulates the gradients of a batch over parts of at most `max_tokens` slots, then takes an Adam step.

    Args:
        model: the model to train.
        optimizer: the optimizer of the model's parameters.
        loss: a function of hidden rows, item table and targets.
        config: settings.
        max_tokens: the largest number of slots in one forward and backward pass.
        processes: the processes that train the model, each with its share of a batch; None: only this one.

    Attributes:
        loss_sum: the sum of the batches' mean losses, float64 on the device; reading it makes the host wait.
        unit_gradient: the gradient of a loss.
        loss_packed: the model's `loss_packed`, compiled if `config.compile`.
    """

    def __init__(
        self,
        model: SequenceModel,
        optimizer: torch.optim.Adam,
        loss: nn.Module,
        config: TrainConfig,
        max_tokens: int,
        processes: Processes | None = None,
    ) -> None:
        self.model, self.optimizer, self.loss, self.config = model, optimizer, loss, config
        self.max_tokens, self.processes = max_tokens, processes or Processes()
        self.device = next(model.parameters()).device
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.unit_gradient = unit_gradient(self.device)
        # Shapes are dynamic: the numbers of rows and sequences differ between batches.
        compiled = torch.compile(model.loss_packed, dynamic=True) if config.compile else None
        self.loss_packed = compiled or model.loss_packed
        self._gradients = self._shared = None
        if not self.processes.is_alone:
            self._gradients, self._shared = flat_gradients(model)

    def __call__(self, batch: Batch, lr: float) -> None:
        """Updates the weights by one batch."""
        self.set_lr(lr)
        parts = list(batch.parts(self.max_tokens, self.model.slots))
        passes = len(parts)
        if isinstance(self.model.item_embedding, ShardedTable):
            (passes,) = self.processes.max(passes)  # all processes look items up equally often
        for part in parts:
            share = part.target.numel() / batch.global_targets
            self.add_gradients(part.items, part.cu_seqlens, part.target, None, part.max_seqlen, share)
        none = batch.items[:0]
        for _ in range(passes - len(parts)):
            self.add_gradients(none, batch.cu_seqlens[:1], none, None, 0)
        self.update()

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of the next update."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def add_gradients(
        self,
        items: Tensor,
        cu_seqlens: Tensor,
        target: Tensor,
        lengths: Tensor | None,
        max_seqlen: int,
        share: float = 1.0,
    ) -> None:
        """Adds the gradients of sequences that have this share of the batch's targets.

        The other arguments are those of `SequenceModel.loss_packed`.
        """
        self.loss_sum += self.backward(items, cu_seqlens, target, lengths, max_seqlen, share)

    def backward(
        self,
        items: Tensor,
        cu_seqlens: Tensor,
        target: Tensor,
        lengths: Tensor | None,
        max_seqlen: int,
        share: float = 1.0,
    ) -> Tensor:
        """Like `add_gradients`, but returns the loss, times the share, instead of adding it to `loss_sum`."""
        objective = self.config.objective
        # Autocast's copies of weights end with the context, so a CUDA graph makes them at each replay.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
            mean = self.loss_packed(items, cu_seqlens, target, max_seqlen, objective, self.loss, lengths)
        loss = mean if share == 1 else mean * share
        loss.backward(self.unit_gradient)
        return loss.detach()

    def update(self) -> None:
        """Takes an Adam step with the gradients of all processes, and clears them."""
        if self._shared is not None:
            self.processes.sum_(self._shared)
        self.optimizer.step()
        self.clear()

    def scale_gradients(self, share: float, loss: Tensor) -> None:
        """Multiplies the gradients of several processes by a share, and adds the loss times the share."""
        assert self._gradients is not None
        self._gradients.mul_(share)
        self.loss_sum += loss * share

    def clear(self) -> None:
        """Discards the gradients."""
        if self._gradients is None:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self._gradients.zero_()


class GraphedStep:
    """Takes the steps of a `TrainStep` as CUDA graphs, a whole batch in one pass.

    Batches are filled up to a few sizes, captured or not. Adam must be capturable, with its learning rate in
    a tensor.

    With several processes, only the forward and backward pass is captured: which calls are captured may
    differ between processes, whereas all of them exchange gradients.

    Args:
        step: the step.
        filling: how batches are filled.
        capture: see `GraphedFunction`.
    """

    def __init__(self, step: TrainStep, filling: Filling, capture: Capture) -> None:
        self._step, self._filling = step, filling
        function = self._take if step.processes.is_alone else self._backward
        self._graphed = GraphedFunction(function, step.device, capture)

    def __call__(self, batch: Batch, lr: float) -> None:
        """Updates the weights by one batch."""
        step = self._step
        step.set_lr(lr)
        if step.processes.is_alone:
            self._graphed(*self._filling(batch))
            return
        if batch.size:
            loss = self._graphed(*self._filling(batch))
            assert loss is not None
            # A graph cannot hold the share, which differs between batches of the same shapes.
            step.scale_gradients(batch.target.numel() / batch.global_targets, loss)
        step.update()

    def _take(self, items: Tensor, cu_seqlens: Tensor, target: Tensor, lengths: Tensor | None = None) -> None:
        self._step.add_gradients(items, cu_seqlens, target, lengths, self._filling.max_seqlen)
        self._step.update()

    def _backward(
        self, items: Tensor, cu_seqlens: Tensor, target: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        return self._step.backward(items, cu_seqlens, target, lengths, self._filling.max_seqlen)


def flat_gradients(model: SequenceModel) -> tuple[Tensor, Tensor]:
    """Zero gradients of all parameters of a model, as views of one tensor.

    A backward pass adds to them in place, so that one all-reduce takes all that processes share: those of a
    sharded item table are complete on the rank that has the rows.

    Returns:
        The tensor, and its part for the parameters that all processes have.

    Raises:
        ConfigError: the parameters have several dtypes or devices.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    kinds = {(parameter.dtype, parameter.device) for _, parameter in named}
    if len(kinds) != 1:
        raise ConfigError(f"several processes need parameters of one dtype and device, got {kinds}")
    sharded = PER_ITEM if isinstance(model.item_embedding, ShardedTable) else ()
    parameters = [p for name, p in named if name not in sharded]
    shared = sum(p.numel() for p in parameters)
    parameters += [p for name, p in named if name in sharded]
    flat = parameters[0].new_zeros(sum(p.numel() for p in parameters))
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
    return flat, flat[:shared]
