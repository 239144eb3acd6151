"""Everything that a configuration stands for, made before the first step: what can fail early fails here."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace

import torch
from rich.console import Console

from recgrela import protocol
from recgrela.config import RunConfig, with_absolute_path
from recgrela.data import EvalBatches, Interactions, TrainBatches, load
from recgrela.errors import ConfigError
from recgrela.files import given_path
from recgrela.models import SequenceModel, build
from recgrela.report import check_tensorboard, say
from recgrela.run_folder import RunFolder, stem_of
from recgrela.runtime import pick_device

# A pass of this size keeps its tensors in a CPU's caches and in memory that is used again; a whole published
# batch, 409,600 slots, spends its time on fresh pages from the system. A GPU wants whole batches.
DEFAULT_MAX_TOKENS = {"cpu": 16_384, "cuda": 1 << 62}


@dataclass(frozen=True)
class Session:
    """A run's parts, on their device.

    Attributes:
        config: with the data's path absolute.
        device: where model and batches are.
        data: the interactions, on the CPU.
        model: with fresh weights from the seed.
        optimizer: Adam as published.
        batches: for training.
        splits: "valid" and "test".
        max_tokens: most item slots in one forward and backward pass.
        use_tensorboard: whether to write TensorBoard events.
    """

    config: RunConfig
    device: torch.device
    data: Interactions
    model: SequenceModel
    optimizer: torch.optim.Adam
    batches: TrainBatches
    splits: dict[str, EvalBatches]
    max_tokens: int
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
    if train.objective not in model.trains_on:
        known = ", ".join(model.trains_on)
        raise ConfigError(
            f"train.objective: {train.objective!r} does not go with this {config.model.name}, which "
            f"trains on: {known}; use that, or for 'all' a causal model (--model.mode causal)"
        )
    return Session(
        config=config,
        device=device,
        data=data,
        model=model,
        # As published: no decay, no clipping, no schedule. "fused" is the same arithmetic in one pass.
        optimizer=torch.optim.Adam(model.parameters(), lr=train.lr, fused=True),
        batches=TrainBatches(on_device, train.objective, max_len, train.batch_size, train.seed, device),
        splits={
            "valid": EvalBatches(on_device, "valid", max_len, train.eval_batch_size, device),
            "test": EvalBatches(on_device, "test", max_len, train.eval_batch_size, device),
        },
        max_tokens=train.max_tokens or DEFAULT_MAX_TOKENS[device.type],
        use_tensorboard=use_tensorboard,
    )


def create_folder(session: Session, console: Console) -> RunFolder:
    """Make a new run folder with all that is known before training, and say what is to be trained.

    Raises:
        RunError: the name is taken, or the files cannot be written; no folder is left then.
    """
    config, data = session.config, session.data
    content = protocol.describe(config, data, session.batches, session.device, session.max_tokens)
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
