"""The objects of a training run, made first so that mistakes are reported before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from recgrela.data import Batch, EvalBatches, Interactions, TrainBatches, load_shared
from recgrela.evaluation.ranking import Ranker
from recgrela.models import SequenceModel, build
from recgrela.models.capture import filling_for
from recgrela.parallel.processes import Processes
from recgrela.parallel.rows import RowShards
from recgrela.runs.tensorboard import use_tensorboard
from recgrela.settings.data import with_absolute_path
from recgrela.settings.run import RunConfig
from recgrela.system.device import use_device
from recgrela.system.errors import ConfigError
from recgrela.system.graphs import CudaGraphs
from recgrela.training.graphs import step_obstacle
from recgrela.training.losses import make_loss
from recgrela.training.memory import BUILDING, check_pass_fits, check_weights_fit
from recgrela.training.step import GraphedStep, TrainStep


@dataclass(frozen=True)
class Session:
    """The objects of a training run, on their device.

    Attributes:
        config: the settings, with an absolute data path.
        processes: the processes of the run.
        device: the device of model and batches.
        data: the interactions, on the CPU.
        model: the model with fresh weights from the seed.
        step: the training step, with Adam and the sum of losses.
        take_step: updates the weights by a batch, given the learning rate; `step` or its CUDA graphs.
        batches: the training batches.
        splits: the evaluation batches "valid" and "test".
        ranker: ranks the items for a split.
        max_tokens: maximum number of item slots in one pass over the model.
        use_tensorboard: whether to write TensorBoard events.
        notes: lines to print before training.
    """

    config: RunConfig
    processes: Processes
    device: torch.device
    data: Interactions
    model: SequenceModel
    step: TrainStep
    take_step: Callable[[Batch, float], None]
    batches: TrainBatches
    splits: dict[str, EvalBatches]
    ranker: Ranker
    max_tokens: int
    use_tensorboard: bool
    notes: list[str]


def open_session(
    config: RunConfig, device: torch.device | None = None, processes: Processes | None = None
) -> Session:
    """Make the objects of a training run; nothing is written. Seeds PyTorch and sets its number of threads.

    Args:
        config: the settings.
        device: the device; None for that of the settings.
        processes: the processes of the run, all of which call this function; None: only this one.

    Raises:
        ConfigError, DataError: settings that do not suit each other, this machine or the data; unreadable
            data.
    """
    config = replace(config, data=with_absolute_path(config.data))
    train, max_len = config.train, config.data.max_len
    tensorboard = use_tensorboard(train.tensorboard)
    device, processes = device or use_device(train.device), processes or Processes()
    wants_graphs = train.wants_graphs(device.type)
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    data = load_shared(config.data, processes)
    on_device = data.to(device)
    shards = RowShards.over(processes, data.n_items, train.shard_items)
    check_weights_fit(config, data.n_items, device, None if shards is None else shards.count)
    torch.manual_seed(train.seed)
    if shards is not None and train.compile:
        raise ConfigError(
            "train.compile: cannot compile a model whose table is divided; use train.shard_items false"
        )
    with BUILDING:
        model = build(config.model, data.n_items, max_len, shards).to(device)
    check_model(model, config)
    if not processes.is_first:
        torch.manual_seed(process_seed(train.seed, processes.rank))  # the weights are those of the first one
    loss = make_loss(train.loss, train.label_smoothing, train.negatives, train.gbce_t, data).to(device)
    place = {"rank": processes.rank, "world": processes.world}
    pieces = train.pieces or processes.world
    batches = TrainBatches(
        on_device, train.objective, max_len, train.batch_size, train.seed, device, pieces=pieces, **place
    )
    max_tokens = config.max_tokens(device.type)
    check_pass_fits(model, config, batches.num_targets, max_tokens, processes.world)
    filling = filling_for(model, train.objective, batches.max_seqlen)
    step = _make_step(model, loss, config, max_tokens, wants_graphs, processes)
    sizes, users = (config.data.history_len, train.eval_batch_size), config.data.eval_users
    splits = {
        split: EvalBatches(on_device, split, *sizes, device, **place, max_users=users)
        for split in ("valid", "test")
    }
    take_step: Callable[[Batch, float], None] = step
    capture, notes = CudaGraphs(device) if wants_graphs else None, []
    if capture is not None:
        if (obstacle := step_obstacle(step, filling)) is None:
            take_step = GraphedStep(step, filling, capture)
        elif train.cuda_graphs == "true":
            raise ConfigError(f"train.cuda_graphs: true is not possible: {obstacle}; or use auto")
        else:
            notes.append(f"note: steps run without CUDA graphs: {obstacle}")
    ranker = Ranker(model, splits["valid"], max_tokens, capture, processes)
    if ranker.obstacle is not None and take_step is not step:
        notes.append(f"note: evaluation runs without CUDA graphs: {ranker.obstacle}")
    return Session(
        config=config,
        processes=processes,
        device=device,
        data=data,
        model=model,
        step=step,
        take_step=take_step,
        batches=batches,
        splits=splits,
        ranker=ranker,
        max_tokens=max_tokens,
        use_tensorboard=tensorboard,
        notes=notes,
    )


def check_same_settings(config: RunConfig, processes: Processes) -> None:
    """Raises ConfigError if processes were started with settings that must be the same but are not."""
    own = ("data.path", "data.valid_path", "data.test_path", "train.device", "train.threads")
    values = {key: value for key, value in config.flat().items() if key not in own}
    texts = processes.gather_text(json.dumps(values))
    for rank, text in enumerate(texts):
        other = json.loads(text)
        for key in (key for key in values if other.get(key) != json.loads(texts[0]).get(key)):
            first = json.loads(texts[0]).get(key)
            raise ConfigError(f"{key}: {other.get(key)!r} in process {rank}, but {first!r} in process 0")


def process_seed(seed: int, rank: int, step: int = 0) -> int:
    """The seed of the random numbers of a process other than the first, from a step of the run on."""
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0])


def check_model(model: SequenceModel, config: RunConfig) -> None:
    """Raises ConfigError if the model does not support the training or evaluation settings."""
    objective, max_len, name = config.train.objective, config.data.max_len, config.model.name
    if objective not in model.trains_on:
        known = ", ".join(model.trains_on)
        causal = "--model.mode causal" if hasattr(config.model, "mode") else "such as SASRec or RecGRELA"
        raise ConfigError(
            f"train.objective: {objective!r} is not supported by this {name}, which trains on: {known}; "
            f"change it, or use a causal model for 'all' ({causal})"
        )
    if model.max_positions is not None and config.data.history_len > model.max_positions:
        raise ConfigError(
            f"data.eval_max_len: {config.data.history_len} is above data.max_len {max_len}, and this {name} "
            "has no positions beyond it; use a causal model with rotary positions"
        )


@BUILDING
def _make_step(
    model: SequenceModel,
    loss: nn.Module,
    config: RunConfig,
    max_tokens: int,
    capturable: bool,
    processes: Processes,
) -> TrainStep:
    """The training step with Adam as published: without weight decay or clipping."""
    train, device = config.train, next(model.parameters()).device
    lr = torch.tensor(train.lr, dtype=torch.float32, device=device) if capturable else train.lr
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True, capturable=capturable)
    # Adam would warn that the first steps run uncaptured, which is on purpose.
    optimizer._warned_capturable_if_run_uncaptured = True
    return TrainStep(model, optimizer, loss, train, max_tokens, processes)
