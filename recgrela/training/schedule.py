"""The learning rate of each step, a function of the settings and of values in protocol.json alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from recgrela.runs.values import is_count, is_number
from recgrela.settings.train import TrainConfig
from recgrela.system.errors import ConfigError, RunError


@dataclass(frozen=True)
class Schedule:
    """A part of a run in which the learning rate rises to `train.lr` and decays to zero.

    A run has one schedule. If its learning rate decays, each extension to more epochs begins another one.

    Attributes:
        epochs: the epoch, counted from the start of the run, at whose end the learning rate is zero.
        step: number of optimization steps of the run before the schedule begins.
        epoch: number of epochs of the run before it begins, with a fraction inside an epoch.
        lr: the learning rate that it rises from.
    """

    epochs: int
    step: int = 0
    epoch: float = 0.0
    lr: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: object, path: Path) -> Schedule:
        """The inverse of `as_dict`. Raises RunError, which names the file `path`, for other content."""
        checks = {field.name: is_count if field.type == "int" else is_number for field in fields(cls)}
        if not isinstance(content, Mapping) or content.keys() != checks.keys():
            raise RunError(f"{path}: damaged: a schedule is {content!r:.200}")
        for key, is_valid in checks.items():
            if not is_valid(content[key], 0):
                raise RunError(f"{path}: damaged: a schedule has {key} {content[key]!r:.200}")
        if content["epochs"] <= content["epoch"]:
            raise RunError(f"{path}: damaged: a schedule ends before it begins: {dict(content)!r}")
        return cls(**content)


class Place(NamedTuple):
    """A step of a run.

    Attributes:
        epoch: completed epochs.
        step: completed steps of the current epoch.
        num_steps: steps per epoch.
        total_steps: completed steps of the run.
    """

    epoch: int
    step: int
    num_steps: int
    total_steps: int

    @property
    def epochs(self) -> float:
        """Completed epochs, with the fraction of the current one."""
        return self.epoch + self.step / self.num_steps


def learning_rate(config: TrainConfig, schedules: Sequence[Schedule], place: Place) -> float:
    """The learning rate of the step after `place`, by the last schedule that has begun.

    It rises over `warmup_steps` steps and decays to zero at the end of the schedule's epochs.

    Args:
        config: settings.
        schedules: the schedules of the run, in order; the first begins at step 0.
        place: the steps that are completed.
    """
    now = [schedule for schedule in schedules if schedule.step <= place.total_steps][-1]
    warmup = min(1.0, (place.total_steps - now.step + 1) / (config.warmup_steps + 1))
    done = min(1.0, (place.epochs - now.epoch) / (now.epochs - now.epoch))
    decay = {"none": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[config.lr_decay]
    return (now.lr + (config.lr - now.lr) * warmup) * decay


def recorded_schedules(content: Mapping[str, Any], path: Path, config: TrainConfig) -> list[Schedule]:
    """The schedules of a run so far.

    Args:
        content: protocol.json.
        path: its path, for errors.
        config: settings of the run.

    Raises:
        RunError: the file is damaged.
    """
    # Without a decay, no learning rate depends on the number of epochs, and none is recorded.
    epochs = content["settings"].get("train.epochs", config.epochs)
    schedules = [Schedule.from_dict(Schedule(epochs).as_dict(), path)]
    for entry in content.get("resumed", []):
        if "schedule" in entry:
            schedules.append(Schedule.from_dict(entry["schedule"], path))
    return schedules


def check_schedules(path: Path, schedules: Sequence[Schedule], num_steps: int, total_steps: int) -> None:
    """Raises RunError, which names the file `path`, if schedules do not follow each other up to a step.

    Args:
        path: protocol.json.
        schedules: the schedules of the run.
        num_steps: steps per epoch.
        total_steps: completed steps of the run.
    """
    for before, after in pairwise(schedules):
        is_after = before.step <= after.step <= total_steps and before.epochs < after.epochs
        if not is_after or abs(after.epoch * num_steps - after.step) > 0.5:
            raise RunError(
                f"{path}: damaged: the schedule {after.as_dict()} does not follow {before.as_dict()} within "
                f"{total_steps} steps, {num_steps} per epoch"
            )


def extension(config: TrainConfig, schedules: Sequence[Schedule], place: Place) -> Schedule | None:
    """The schedule that begins now if `train.epochs` has grown, None if the current one continues.

    Args:
        config: settings with the wanted number of epochs.
        schedules: the schedules so far.
        place: the steps that are completed.

    Raises:
        ConfigError: the learning rate already decays over more epochs.
    """
    before = schedules[-1].epochs
    if config.lr_decay == "none" or config.epochs == before:
        return None
    if config.epochs < before:
        raise ConfigError(
            f"train.epochs: {config.epochs} is below the {before} epochs over which the learning rate "
            "decays; give at least as many, or end training earlier with --train.max_steps"
        )
    lr = learning_rate(config, schedules, place)
    return Schedule(config.epochs, place.total_steps, place.epochs, lr)


def describe_schedule(config: TrainConfig, schedule: Schedule) -> str:
    """A schedule in words."""
    start = f"starts at {config.lr:.3g}"
    if config.warmup_steps:
        start = f"rises from {schedule.lr:.3g} to {config.lr:.3g} over {config.warmup_steps} steps"
    decay = f"decays ({config.lr_decay}) to zero at the end of epoch {schedule.epochs}"
    return f"the learning rate {start} and {decay}"
