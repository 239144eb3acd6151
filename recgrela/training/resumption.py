"""Resumes a run from its last checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from recgrela.models import CONFIGS
from recgrela.parallel.launch import Launch
from recgrela.parallel.processes import Processes
from recgrela.runs import checkpoint, protocol
from recgrela.runs.consistency import recorded_ids
from recgrela.runs.folder import RunFolder
from recgrela.runs.items import read_items
from recgrela.runs.state import TrainState
from recgrela.settings.run import RunConfig, check_resumed, read_config
from recgrela.system.console import say
from recgrela.system.errors import ConfigError, RunError
from recgrela.system.files import atomic_write_text, expand_path
from recgrela.training.schedule import (
    Place,
    Schedule,
    check_schedules,
    describe_schedule,
    extension,
    recorded_schedules,
)
from recgrela.training.session import Session, process_seed


def resumes_existing(config: RunConfig, launch: Launch) -> bool:
    """Whether a command for a new run resumes the run of its name if there is one.

    A process that torchrun restarts has the same command as before, so it resumes if restarts are allowed.
    The number of restarts does not tell: it differs between hosts after some have joined or left.

    Raises:
        ConfigError: torchrun may restart processes, but the run has no name by which they could find it.
    """
    if launch.max_restarts and config.train.name is None:
        raise ConfigError(
            f"torchrun may restart processes {launch.max_restarts} times; give --train.name, by which "
            "they find the run to resume"
        )
    return config.train.if_exists == "resume" or launch.max_restarts > 0


def find_existing(config: RunConfig, processes: Processes) -> RunFolder | None:
    """The run that a command for a new run resumes, None if it begins a new one. All processes call it.

    Raises:
        ConfigError: the run has other settings; or see `resumes_existing`.
    """
    if not resumes_existing(config, processes.launch):
        return None
    folder = RunFolder(expand_path(config.train.output, "train.output") / str(config.train.name))
    if not processes.on_first(folder.checkpoint_path("last").is_file):
        return None
    check_resumed(read_config(folder.config_path, CONFIGS), config)
    return folder


def resume(folder: RunFolder, session: Session, console: Console) -> tuple[TrainState, list[Schedule]]:
    """Load the last checkpoint into the session, and roll the folder's files back to that checkpoint.

    All processes read the files and check them before the first one changes any. If `train.epochs` has
    grown and the learning rate decays, a new schedule begins.

    Returns:
        The counters, and the schedules of the learning rate.

    Raises:
        ConfigError: `train.epochs` is below the end of the schedule; the folder is unchanged.
        RunError: a file is missing or damaged; the folder is unchanged.
    """
    config, step, processes = session.config, session.step, session.processes
    path = folder.find_checkpoint("last")
    if not processes.is_first:  # for a process that the run did not have
        done = TrainState.from_dict(checkpoint.read_meta(path)["state"], path).total_steps
        torch.manual_seed(process_seed(config.train.seed, processes.rank, done))
    content = checkpoint.load(path, session.model, step.optimizer, processes.rank)
    state = TrainState.from_dict(content, path)
    _check_place(path, state, session)
    step.loss_sum.fill_(state.loss_sum if processes.is_first else 0.0)
    if state.best_score is not None:
        checkpoint.check(folder.find_checkpoint("best"), session.model)
    items = read_items(folder.items_path, session.model.n_items, recorded_ids(folder))
    if items.tokens != list(session.data.item_ids):
        raise RunError(f"{folder.items_path}: not the items of the run's data; restore the file")
    content, records = folder.read_protocol(), folder.metrics.first_epochs(state.epoch)
    schedules = recorded_schedules(content, folder.protocol_path, config.train)
    check_schedules(folder.protocol_path, schedules, session.batches.num_steps, state.total_steps)
    place = Place(state.epoch, state.step, session.batches.num_steps, state.total_steps)
    added = extension(config.train, schedules, place)
    if state.reason_to_stop(config.train) is not None:
        added = None  # it begins when training continues

    entry = protocol.resumption(
        config, state.total_steps, session.device, processes.world, session.batches.partition.pieces
    )
    if added is not None:
        schedules.append(added)
        entry["schedule"] = added.as_dict()

    def change_files() -> None:
        folder.settle_best(state)
        # Training will outdate the table. In this order, a killed process leaves a complete folder.
        folder.metrics.rewrite(records)
        for result in (folder.results_path, folder.ranks_path):
            result.unlink(missing_ok=True)
        # In this order, a run killed in between begins the same schedule when it is resumed.
        atomic_write_text(folder.config_path, config.to_yaml())
        folder.write_json(folder.protocol_path, content | {"resumed": [*content.get("resumed", []), entry]})

    processes.wait()  # until all have read the files
    processes.on_first(change_files)
    say(console, f"resuming {folder.path} {state.describe()}")
    if added is not None:
        say(console, f"new schedule from step {added.step} on: {describe_schedule(config.train, added)}")
    here = protocol.environment(session.device, processes.world)
    others = [other for other in protocol.environments(content) if other != here]
    if others:
        changes = [
            f"{key} was {old} and is now {here[key]}" for key, old in others[-1].items() if old != here[key]
        ]
        say(console, f"note: rounding may differ: {', '.join(changes)}")
    return state, schedules


def _check_place(path: Path, state: TrainState, session: Session) -> None:
    """Raises RunError if a checkpoint is at a step that the run does not have, or lost the state of Adam."""
    steps = session.batches.num_steps
    if state.step > steps or state.total_steps != state.epoch * steps + state.step:
        raise RunError(
            f"{path}: damaged: its state has epoch {state.epoch}, step {state.step} and total_steps "
            f"{state.total_steps}, but an epoch has {steps} steps"
        )
    if state.total_steps > 0 and not session.step.optimizer.state:
        raise RunError(f"{path}: damaged: the optimizer's state is missing")
