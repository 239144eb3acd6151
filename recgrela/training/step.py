"""One step of training: a batch in, new weights out, without a wait for the device."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from recgrela.data import Batch
from recgrela.models import SequenceModel
from recgrela.settings.train import TrainConfig


def learning_rate(config: TrainConfig, epoch: int, step: int, num_steps: int, total_steps: int) -> float:
    """The learning rate of a step: `warmup_steps` of rise, and a fall to zero at the end of `epochs`.

    Args:
        config: settings.
        epoch, step: epochs done, and steps done in the one after those.
        num_steps: steps in an epoch.
        total_steps: steps done in all.
    """
    rise = min(1.0, (total_steps + 1) / (config.warmup_steps + 1))
    done = min(1.0, (epoch + step / num_steps) / config.epochs)
    fall = {"none": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[config.lr_decay]
    return config.lr * rise * fall


class TrainStep:
    """Gradients of a batch, in parts of at most `max_tokens` items, then Adam.

    Args:
        model: to train.
        optimizer: of its parameters.
        loss: of hidden rows, item table and targets.
        config: settings.
        max_tokens: most item slots in one forward and backward pass.

    Attributes:
        loss_sum: the sum of the batches' mean losses, float64 on the device: reading it makes the host wait.
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
        # The numbers of rows and sequences differ from batch to batch: compiled once, for any.
        compiled = torch.compile(model.loss_packed, dynamic=True) if config.compile else None
        self._loss_packed = compiled or model.loss_packed

    def __call__(self, batch: Batch, lr: float) -> None:
        """Move the weights on by one batch."""
        self._set_lr(lr)
        self.optimizer.zero_grad(set_to_none=True)
        for part in batch.parts(self.max_tokens, self.model.counted_len, self.model.dense):
            share = part.target.numel() / batch.target.numel()
            self._backward(part.items, part.cu_seqlens, part.target, part.max_seqlen, share)
        self.optimizer.step()

    def _backward(
        self, items: Tensor, cu_seqlens: Tensor, target: Tensor, max_seqlen: int, share: float
    ) -> None:
        """Add the gradients of a part whose targets are this share of the batch's."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
            mean = self._loss_packed(items, cu_seqlens, target, max_seqlen, self.config.objective, self.loss)
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
    """Turns bodies into CUDA graphs, which share their memory: nothing in it has to outlive a replay."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, body: Callable[[], None]) -> Callable[[], None]:
        """What repeats the body's kernels in one launch; the body is captured, not run."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            body()
        return graph.replay


class GraphedStep(TrainStep):
    """The step of objective "all" as one CUDA graph, for batches of the full size.

    A batch of the full size always has the same number of items. Its number of sequences varies: it is filled
    up with empty ones to a multiple of `ROOM`, and every such size has a graph of its own. The first steps,
    the first batch of a size, and an epoch's last and smaller batch go kernel by kernel. Adam must be
    capturable, its learning rate a tensor.

    Args:
        max_seqlen: the longest sequence of any batch.
        capture: turns a body into its replay; by default `CudaGraphs`.
    """

    ROOM = 64
    WARM_UP = 3  # steps in which kernels are loaded and the optimiser makes its state

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
        self._sizes: set[int] = set()  # that have run
        self._side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def __call__(self, batch: Batch, lr: float) -> None:
        size = -(-batch.size // self.ROOM) * self.ROOM
        offsets = torch.nn.functional.pad(batch.cu_seqlens, (0, size - batch.size), value=batch.num_tokens)
        self._steps += 1
        is_new = size not in self._sizes  # kernels to load, code to compile: not inside a capture
        if is_new or self._steps <= self.WARM_UP or batch.num_tokens != self.config.batch_size:
            self._sizes.add(size)
            self._set_lr(lr)
            self._aside(lambda: self._whole(batch.items, offsets, batch.target))
            return
        self._items.copy_(batch.items)
        self._target.copy_(batch.target)
        if size not in self._graphs:
            static = offsets.clone()
            replay = self._capture(lambda: self._whole(self._items, static, self._target))
            self._graphs[size] = static, replay
        static, replay = self._graphs[size]
        static.copy_(offsets)
        self._set_lr(lr)
        replay()

    def _whole(self, items: Tensor, cu_seqlens: Tensor, target: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self._backward(items, cu_seqlens, target, self.max_seqlen, 1.0)
        self.optimizer.step()

    def _aside(self, body: Callable[[], None]) -> None:
        """Run on a stream of its own, as PyTorch asks of what precedes a capture."""
        if self._side is None:
            body()
            return
        here = torch.cuda.current_stream(self.device)
        self._side.wait_stream(here)
        with torch.cuda.stream(self._side):
            body()
        here.wait_stream(self._side)
