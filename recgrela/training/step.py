"""One training step: from a batch to new weights, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recgrela.data import Batch
from recgrela.data.filling import Filling
from recgrela.models import SequenceModel
from recgrela.ops.linear_cross_entropy import unit_gradient
from recgrela.settings.train import TrainConfig
from recgrela.system.graphs import Capture, GraphedFunction


class TrainStep:
    """Accumulates the gradients of a batch over parts of at most `max_tokens` slots, then takes an Adam step.

    Args:
        model: the model to train.
        optimizer: the optimizer of the model's parameters.
        loss: a function of hidden rows, item table and targets.
        config: settings.
        max_tokens: the largest number of slots in one forward and backward pass.

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
    ) -> None:
        self.model, self.optimizer, self.loss, self.config = model, optimizer, loss, config
        self.max_tokens = max_tokens
        self.device = next(model.parameters()).device
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.unit_gradient = unit_gradient(self.device)
        # Shapes are dynamic: the numbers of rows and sequences differ between batches.
        compiled = torch.compile(model.loss_packed, dynamic=True) if config.compile else None
        self.loss_packed = compiled or model.loss_packed

    def __call__(self, batch: Batch, lr: float) -> None:
        """Updates the weights by one batch."""
        self.set_lr(lr)
        for part in batch.parts(self.max_tokens, self.model.slots):
            share = part.target.numel() / batch.target.numel()
            self.add_gradients(part.items, part.cu_seqlens, part.target, None, part.max_seqlen, share)
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
        objective = self.config.objective
        # Autocast's copies of weights end with the context, so a CUDA graph makes them at each replay.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
            mean = self.loss_packed(items, cu_seqlens, target, max_seqlen, objective, self.loss, lengths)
        loss = mean if share == 1 else mean * share
        loss.backward(self.unit_gradient)
        self.loss_sum += loss.detach()

    def update(self) -> None:
        """Takes an Adam step with the gradients, and frees them."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class GraphedStep:
    """Takes the steps of a `TrainStep` as CUDA graphs, a whole batch in one pass.

    Batches are filled up to a few sizes, captured or not. Adam must be capturable, with its learning rate in
    a tensor.

    Args:
        step: the step.
        filling: how batches are filled.
        capture: see `GraphedFunction`.
    """

    def __init__(self, step: TrainStep, filling: Filling, capture: Capture) -> None:
        self._step, self._filling = step, filling
        self._graphed = GraphedFunction(self._take, step.device, capture)

    def __call__(self, batch: Batch, lr: float) -> None:
        """Updates the weights by one batch."""
        self._step.set_lr(lr)
        self._graphed(*self._filling(batch))

    def _take(self, items: Tensor, cu_seqlens: Tensor, target: Tensor, lengths: Tensor | None = None) -> None:
        self._step.add_gradients(items, cu_seqlens, target, lengths, self._filling.max_seqlen)
        self._step.update()
