"""Where a training run stands: with the weights and random states, all that is needed to go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from recgrela.evaluation.metrics import Ranking
from recgrela.settings.train import TrainConfig
from recgrela.system.errors import RunError

_KINDS: dict[Any, tuple[type, ...]] = {  # JSON's types of a field's annotation
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "list[list[float]]": (list,),
}


@dataclass
class TrainState:
    """Counters of a run, as plain values for a checkpoint.

    Attributes:
        epoch: epochs trained and evaluated.
        step: steps done in the epoch after those.
        total_steps: optimisation steps in all.
        best_score: best rounded NDCG@10 so far.
        best_epoch: the epoch (from 1) that reached it.
        stale_epochs: epochs since then.
        loss_sum: sum of the batch means in the epoch in hand; read from the device now and then.
        read_sum, read_step: `loss_sum` and `step` at the last reading.
        samples, targets, seconds: of the epoch in hand.
        loss_curve: [total_steps, mean loss since the reading before] for each reading in the epoch in hand.
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
        """The inverse of `as_dict`. Raises RunError, naming the checkpoint `path`, where it is not that."""
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

    def is_improvement(self, score: float) -> bool:
        """Whether a valid score, rounded to 4 decimals, counts as one; an equal one does (RecBole's rule)."""
        return self.best_score is None or round(score, 4) >= self.best_score

    def finish_epoch(self, score: float) -> None:
        """Count the epoch in hand as done, with its valid score."""
        self.epoch += 1
        if self.is_improvement(score):
            self.best_score, self.best_epoch, self.stale_epochs = round(score, 4), self.epoch, 0
        else:
            self.stale_epochs += 1
        self.step = self.read_step = self.samples = self.targets = 0
        self.loss_sum = self.read_sum = self.seconds = 0.0
        self.loss_curve = []

    def record(self, kind: str, valid: Ranking, eval_seconds: float, improved: bool) -> dict[str, Any]:
        """A line of metrics.jsonl for the epoch in hand, `kind` "epoch" or "partial"."""
        seconds = max(self.seconds, 1e-9)
        return {
            "kind": kind,
            "epoch": self.epoch + 1,
            "step": self.total_steps,
            "loss": self.loss_sum / self.step,  # mean of the batch means
            "loss_sum": self.loss_sum,  # their sum, as RecBole prints it
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
        """Why training is over, if it is."""
        if config.max_steps is not None and self.total_steps >= config.max_steps:
            return f"{config.max_steps} steps done"
        if self.stale_epochs > config.patience:
            return f"no improvement in {self.stale_epochs} epochs"
        if self.epoch >= config.epochs:
            return f"{self.epoch} epochs done"
        return None
