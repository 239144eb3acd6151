"""Everything that a configuration stands for, made before the first step: what can fail early fails here."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from torch import nn

from recgrela.data import EvalBatches, Interactions, TrainBatches, load
from recgrela.models import SequenceModel, build
from recgrela.runs import protocol
from recgrela.runs.folder import RunFolder, stem_of
from recgrela.runs.report import check_tensorboard
from recgrela.settings.data import with_absolute_path
from recgrela.settings.run import RunConfig
from recgrela.system.console import say
from recgrela.system.errors import ConfigError
from recgrela.system.files import given_path
from recgrela.system.runtime import pick_device
from recgrela.training.losses import make_loss
from recgrela.training.step import GraphedStep, TrainStep


@dataclass(frozen=True)
class Session:
    """A run's parts, on their device.

    Attributes:
        config: with the data's path absolute.
        device: where model and batches are.
        data: the interactions, on the CPU.
        model: with fresh weights from the seed.
        step: moves the model on by a batch, with Adam.
        batches: for training.
        splits: "valid" and "test".
        use_tensorboard: whether to write TensorBoard events.
    """

    config: RunConfig
    device: torch.device
    data: Interactions
    model: SequenceModel
    step: TrainStep
    batches: TrainBatches
    splits: dict[str, EvalBatches]
    use_tensorboard: bool


def open_session(config: RunConfig) -> Session:
    """Make the parts of a run; nothing is written. Seeds PyTorch and sets its threads.

    Raises:
        ConfigError, DataError: settings that do not fit each other, this machine or the data; data that
            cannot be read.
    """
    config = replace(config, data=with_absolute_path(config.data))
    train, max_len = config.train, config.data.max_len
    use_tensorboard = check_tensorboard(train.tensorboard)
    device = pick_device(train.device)
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    data = load(config.data)
    on_device = data.to(device)
    torch.manual_seed(train.seed)
    model = build(config.model, data.n_items, max_len).to(device)
    check_model(model, config)
    loss = make_loss(train.loss, train.label_smoothing, train.negatives, train.gbce_t, on_device)
    batches = TrainBatches(on_device, train.objective, max_len, train.batch_size, train.seed, device)
    return Session(
        config=config,
        device=device,
        data=data,
        model=model,
        step=_make_step(model, loss, config),
        batches=batches,
        splits={
            split: EvalBatches(on_device, split, config.data.history_len, train.eval_batch_size, device)
            for split in ("valid", "test")
        },
        use_tensorboard=use_tensorboard,
    )


def check_model(model: SequenceModel, config: RunConfig) -> None:
    """Raises ConfigError for a model that cannot be trained or evaluated in the way of `config`."""
    objective, max_len = config.train.objective, config.data.max_len
    if objective not in model.trains_on:
        known = ", ".join(model.trains_on)
        causal = "--model.mode causal" if hasattr(config.model, "mode") else "such as SASRec or RecGRELA"
        raise ConfigError(
            f"train.objective: {objective!r} does not go with this {config.model.name}, which "
            f"trains on: {known}; use that, or for 'all' a causal model ({causal})"
        )
    if config.train.cuda_graphs and model.attends_to_padding:
        raise ConfigError(
            "train.cuda_graphs fills batches up with empty sequences, whose padding slots would take part in "
            f"this {config.model.name}: it goes with --model.padding mask"
        )
    if model.max_positions is not None and config.data.history_len > model.max_positions:
        raise ConfigError(
            f"data.eval_max_len: {config.data.history_len} is above data.max_len {max_len}, and this "
            f"{config.model.name} has no positions beyond it; a causal model with rotary positions has"
        )


def _make_step(model: SequenceModel, loss: nn.Module, config: RunConfig) -> TrainStep:
    """With Adam as published: no decay, no clipping; "fused" is the same arithmetic in one pass."""
    train, device = config.train, next(model.parameters()).device
    if not train.cuda_graphs:
        optimizer = torch.optim.Adam(model.parameters(), lr=train.lr, fused=True)
        return TrainStep(model, optimizer, loss, train, config.max_tokens(device.type))
    if device.type != "cuda":
        raise ConfigError("train.cuda_graphs needs a GPU; the device of this run is the CPU")
    lr = torch.tensor(train.lr, device=device)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True, capturable=True)
    # The first steps are not captured, on purpose, of which it would warn.
    optimizer._warned_capturable_if_run_uncaptured = True
    return GraphedStep(model, optimizer, loss, train, config.data.max_len)


def create_folder(session: Session, console: Console) -> RunFolder:
    """Make a new run folder with all that is known before training, and say what is to be trained.

    Raises:
        RunError: the name is taken, or the files cannot be written; no folder is left then.
    """
    config, data = session.config, session.data
    content = protocol.describe(config, data, session.batches, session.device, session.step.max_tokens)
    stem = stem_of(config.data.path, config.preset) + "-modified" * bool(content["changed_from_preset"])
    folder = RunFolder.create(given_path(config.train.output, "train.output"), config.train.name, stem)
    try:
        folder.write_text(folder.config_path, config.to_yaml())
        folder.write_json(folder.protocol_path, content)
        folder.write_items(data)
    except BaseException:
        shutil.rmtree(folder.path)
        raise
    counts = content["data"]
    weights = sum(parameter.numel() for parameter in session.model.parameters())
    say(console, f"run folder {folder.path}")
    say(
        console,
        f"{counts['source']}: {counts['users']:,} users, {counts['items']:,} items, {counts['events']:,} "
        f"events (padding ids included); {session.batches.num_targets:,} targets an epoch",
    )
    say(console, f"{config.model.name}: {weights:,} parameters, on {content['machine']['device_name']}")
    return folder
