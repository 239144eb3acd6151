"""One training step: from a batch to new weights, without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from recgrela.data import Batch
from recgrela.models import SequenceModel
from recgrela.settings.train import Objective, TrainConfig


def learning_rate(config: TrainConfig, epoch: int, step: int, num_steps: int, total_steps: int) -> float:
    """The learning rate of a step: it rises for `warmup_steps` and decays to zero at the end of `epochs`.

    Args:
        config: settings.
        epoch, step: completed epochs, and completed steps of the current epoch.
        num_steps: steps per epoch.
        total_steps: completed steps of the run.
    """
    warmup = min(1.0, (total_steps + 1) / (config.warmup_steps + 1))
    done = min(1.0, (epoch + step / num_steps) / config.epochs)
    decay = {"none": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[config.lr_decay]
    return config.lr * warmup * decay


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
        # Shapes are dynamic: the numbers of rows and sequences differ between batches.
        compiled = torch.compile(model.loss_packed, dynamic=True) if config.compile else None
        self._loss_packed = compiled or model.loss_packed

    def __call__(self, batch: Batch, lr: float) -> None:
        """Updates the weights by one batch."""
        self._set_lr(lr)
        self.optimizer.zero_grad(set_to_none=True)
        for part in batch.parts(self.max_tokens, self.model.slots):
            share = part.target.numel() / batch.target.numel()
            self._backward(part.items, part.cu_seqlens, part.target, part.max_seqlen, part.objective, share)
        self.optimizer.step()

    def _backward(
        self,
        items: Tensor,
        cu_seqlens: Tensor,
        target: Tensor,
        max_seqlen: int,
        objective: Objective,
        share: float,
    ) -> None:
        """Adds the gradients of a part that has this share of the batch's targets."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
            mean = self._loss_packed(items, cu_seqlens, target, max_seqlen, objective, self.loss)
        loss = mean * share
        loss.backward()
        self.loss_sum += loss.detach()

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


Capture = Callable[[Callable[[], None]], Callable[[], None]]


class CudaGraphs:
    """Captures functions as CUDA graphs that share one memory pool.

    No result may stay in the pool after a replay: the next replay of any graph can overwrite it.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, body: Callable[[], None]) -> Callable[[], None]:
        """Captures the kernels of `body` without running them; returns a function that launches them."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            body()
        return graph.replay


class GraphedStep(TrainStep):
    """A training step of objective "all" that launches each full batch as one CUDA graph.

    Full batches have the same number of items, but not of sequences: each is padded with empty sequences to
    a multiple of `BATCH_MULTIPLE`, and there is one graph per padded size. The first steps, the first
    batch of each size and the last, smaller batch of an epoch run without a graph. Adam must be capturable,
    with its learning rate in a tensor.

    Args:
        model, optimizer, loss, config: see `TrainStep`.
        max_seqlen: the length of the longest sequence of any batch.
        capture: turns a function into its replay; by default `CudaGraphs`.
    """

    BATCH_MULTIPLE = 64
    WARM_UP = 3  # steps that load kernels and allocate the optimizer's state

    def __init__(
        self,
        model: SequenceModel,
        optimizer: torch.optim.Adam,
        loss: nn.Module,
        config: TrainConfig,
        max_seqlen: int,
        capture: Capture | None = None,
    ) -> None:
        super().__init__(model, optimizer, loss, config, config.batch_size)
        self.max_seqlen, self._capture = max_seqlen, capture or CudaGraphs()
        self._items = torch.zeros(config.batch_size, dtype=torch.int64, device=self.device)
        self._target = torch.zeros_like(self._items)
        self._graphs: dict[int, tuple[Tensor, Callable[[], None]]] = {}
        self._steps = 0
        self._warm_sizes: set[int] = set()
        self._side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def __call__(self, batch: Batch, lr: float) -> None:
        size = -(-batch.size // self.BATCH_MULTIPLE) * self.BATCH_MULTIPLE
        offsets = torch.nn.functional.pad(batch.cu_seqlens, (0, size - batch.size), value=batch.num_tokens)
        self._steps += 1
        # The first batch of a size loads kernels and compiles code, which a capture must not do.
        is_new = size not in self._warm_sizes
        if is_new or self._steps <= self.WARM_UP or batch.num_tokens != self.config.batch_size:
            self._warm_sizes.add(size)
            self._set_lr(lr)
            self._run_aside(lambda: self._take_step(batch.items, offsets, batch.target))
            return
        self._items.copy_(batch.items)
        self._target.copy_(batch.target)
        if size not in self._graphs:
            static = offsets.clone()
            replay = self._capture(lambda: self._take_step(self._items, static, self._target))
            self._graphs[size] = static, replay
        static, replay = self._graphs[size]
        static.copy_(offsets)
        self._set_lr(lr)
        replay()

    def _take_step(self, items: Tensor, cu_seqlens: Tensor, target: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self._backward(items, cu_seqlens, target, self.max_seqlen, "all", 1.0)
        self.optimizer.step()

    def _run_aside(self, body: Callable[[], None]) -> None:
        """Runs `body` on a side stream, as PyTorch requires before a capture."""
        if self._side is None:
            body()
            return
        here = torch.cuda.current_stream(self.device)
        self._side.wait_stream(here)
        with torch.cuda.stream(self._side):
            body()
        here.wait_stream(self._side)
