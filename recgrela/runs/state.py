"""The counters of a training run, which a checkpoint stores beside weights and random states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from recgrela.evaluation.metrics import Ranking
from recgrela.settings.train import TrainConfig
from recgrela.system.errors import RunError

_KINDS: dict[Any, tuple[type, ...]] = {  # the JSON types of each annotation
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "list[list[float]]": (list,),
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

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], path: Path) -> TrainState:
        """The inverse of `as_dict`. Raises RunError, which names the checkpoint `path`, for other content."""
        known = {field.name: _KINDS[field.type] for field in fields(cls)}
        for key in known.keys() ^ content.keys():
            raise RunError(
                f"{path}: damaged: its state has {'no' if key in known else 'an unknown'} key {key!r}"
            )
        for key, kinds in known.items():
            if not isinstance(content[key], kinds):
                raise RunError(f"{path}: damaged: its state has {key} {content[key]!r}")
        return cls(**content)

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
