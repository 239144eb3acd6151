"""The counters of a training run, which a checkpoint stores beside weights and random states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from recgrela.evaluation.metrics import Ranking
from recgrela.runs.values import is_count, is_number
from recgrela.settings.train import TrainConfig
from recgrela.system.errors import RunError

_CHECKS: dict[Any, Callable[[Any], bool]] = {  # of the JSON values of each annotation
    "int": is_count,
    "float": is_number,
    "float | None": lambda value: value is None or is_number(value, 0, 1),
    "str | None": lambda value: value is None or (isinstance(value, str) and len(value) == 64),
    "list[list[float]]": lambda value: isinstance(value, list) and all(map(_is_point, value)),
}


@dataclass
class TrainState:
    """Counters of a run, as plain values for a checkpoint. The current epoch is the first unfinished one.

    Attributes:
        epoch: number of finished epochs.
        step: number of steps done in the current epoch.
        total_steps: number of optimization steps of the run.
        best_score: best NDCG@10 so far, rounded.
        best_epoch: the epoch, from 1, with the best score.
        stale_epochs: number of epochs since the best one.
        loss_sum: sum of the batch means in the current epoch, as last read from the device.
        read_sum, read_step: `loss_sum` and `step` at the last point of the loss curve.
        samples, targets, seconds: totals of the current epoch.
        loss_curve: points [total_steps, mean loss since the previous point] of the current epoch.
        best_sha256: checksum of the checkpoint of the best epoch; None before the first epoch, in that
            checkpoint itself, and in a run of an earlier version.
    """

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    best_score: float | None = None
    best_epoch: int = 0
    stale_epochs: int = 0
    loss_sum: float = 0.0
    read_sum: float = 0.0
    read_step: int = 0
    samples: int = 0
    targets: int = 0
    seconds: float = 0.0
    loss_curve: list[list[float]] = field(default_factory=list)
    best_sha256: str | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], path: Path) -> TrainState:
        """The inverse of `as_dict`.

        Raises:
            RunError: the content is another, a value is out of its range, or two values contradict each
                other; the message names the checkpoint `path`.
        """
        known = {field.name: _CHECKS[field.type] for field in fields(cls)}
        content = {"best_sha256": None, **content}  # earlier versions have none
        for key in known.keys() ^ content.keys():
            raise RunError(
                f"{path}: damaged: its state has {'no' if key in known else 'an unknown'} key {key!r}"
            )
        for key, is_valid in known.items():
            if not is_valid(content[key]):
                raise RunError(f"{path}: damaged: its state has {key} {content[key]!r:.200}")
        state = cls(**content)
        state._check(path)
        return state

    def _check(self, path: Path) -> None:
        """Raises RunError if two counters contradict each other."""

        def refuse(*names: str) -> NoReturn:
            values = " and ".join(f"{name} {getattr(self, name)!r:.200}" for name in names)
            raise RunError(f"{path}: damaged: its state has {values}, which contradict each other")

        if (self.best_score is None) != (self.best_epoch == 0):
            refuse("best_score", "best_epoch")
        if self.best_epoch + self.stale_epochs != self.epoch:
            refuse("epoch", "best_epoch", "stale_epochs")
        if self.total_steps < self.epoch + self.step:  # an epoch has at least one step
            refuse("total_steps", "epoch", "step")
        if self.read_step > self.step:
            refuse("read_step", "step")
        for name in ("samples", "targets"):
            if not (self.step <= getattr(self, name) and (self.step > 0 or getattr(self, name) == 0)):
                refuse(name, "step")
        steps = [point[0] for point in self.loss_curve]
        if any(b <= a for a, b in pairwise([self.total_steps - self.step, *steps, self.total_steps + 1])):
            refuse("loss_curve", "total_steps", "step")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def describe(self) -> str:
        """The progress, such as "after epoch 12, step 4800" or "in epoch 13, step 4900"."""
        if self.step:
            return f"in epoch {self.epoch + 1}, step {self.total_steps}"
        return f"after epoch {self.epoch}, step {self.total_steps}"

    def is_improvement(self, score: float) -> bool:
        """Whether a valid score, rounded to 4 decimals, is at least the best one (RecBole's rule)."""
        return self.best_score is None or round(score, 4) >= self.best_score

    def finish_epoch(self, score: float) -> None:
        """End the current epoch with its valid score."""
        self.epoch += 1
        if self.is_improvement(score):
            self.best_score, self.best_epoch, self.stale_epochs = round(score, 4), self.epoch, 0
        else:
            self.stale_epochs += 1
        self.step = self.read_step = self.samples = self.targets = 0
        self.loss_sum = self.read_sum = self.seconds = 0.0
        self.loss_curve = []

    def add_loss_point(self) -> float:
        """Add a point to the loss curve and return its mean loss."""
        mean = (self.loss_sum - self.read_sum) / (self.step - self.read_step)
        self.loss_curve.append([self.total_steps, mean])
        self.read_sum, self.read_step = self.loss_sum, self.step
        return mean

    def record(self, kind: str, valid: Ranking, eval_seconds: float, improved: bool) -> dict[str, Any]:
        """A record of metrics.jsonl for the current epoch; `kind` is "epoch" or "partial"."""
        seconds = max(self.seconds, 1e-9)
        return {
            "kind": kind,
            "epoch": self.epoch + 1,
            "step": self.total_steps,
            "loss": self.loss_sum / self.step,  # mean of the batch means
            "loss_sum": self.loss_sum,  # the figure that RecBole prints
            "samples": self.samples,
            "targets": self.targets,
            "seconds": self.seconds,
            "samples_per_second": self.samples / seconds,
            "targets_per_second": self.targets / seconds,
            "eval_seconds": eval_seconds,
            "improved": improved,
            "valid": valid.as_dict(),
            "loss_curve": self.loss_curve,
        }

    def reason_to_stop(self, config: TrainConfig) -> str | None:
        """The reason why training ends here, None if it continues."""
        if config.max_steps is not None and self.total_steps >= config.max_steps:
            return f"{config.max_steps} steps done"
        if self.stale_epochs > config.patience:
            return f"no improvement in {self.stale_epochs} epochs"
        if self.epoch >= config.epochs:
            return f"{self.epoch} epochs done"
        return None


def _is_point(value: object) -> bool:
    """Whether a value of a JSON file is a point of a loss curve."""
    return isinstance(value, list) and len(value) == 2 and is_count(value[0], 1) and is_number(value[1])
