"""Settings of a run, as typed dataclasses; `recgrela.options` reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import yaml

from recgrela.cli import MAX_COUNT, MAX_THREADS, check_range
from recgrela.data import DataConfig
from recgrela.errors import ConfigError
from recgrela.files import given_path
from recgrela.suggest import near_miss

DEFAULT_PRESET = "causal"

Objective = Literal["last", "all"]
TensorBoard = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class TrainConfig:
    """Training.

    Args:
        objective: "last" learns one target per prefix (the published way), "all" every position of a window
            (causal models only).
        epochs: Most epochs.
        max_steps: Stop after this many optimisation steps in all, even inside an epoch; no limit by default.
        batch_size: Sequences in a step.
        max_tokens: Most items (padding slots included) in one forward and backward pass; a larger batch is
            done in parts whose gradients add up. 16,384 on a CPU and no limit on a GPU by default.
        lr: Adam's learning rate.
        amp: Run the forward pass in bfloat16 where that is safe (autocast); the weights stay float32.
        eval_batch_size: Users ranked at a time.
        patience: Stop at more than this many epochs without an improvement of NDCG@10 on the valid split.
        seed: Seed of weights, dropout and the order of samples.
        device: auto (the GPU where there is one), cpu, cuda or cuda:N.
        threads: CPU threads; PyTorch's choice by default.
        output: Folder that holds the run folders.
        name: Name of the run folder; data, preset and time by default.
        tensorboard: Write TensorBoard events: "auto" does where the package is installed, "on" insists.
        log_every: Steps between two readings of the loss (each makes the host wait for the device).
        save_minutes: Minutes between two checkpoints inside an epoch; one follows every epoch anyway.
    """

    objective: Objective = "all"
    epochs: int = 300
    max_steps: int | None = None
    batch_size: int = 8
    max_tokens: int | None = None
    lr: float = 1e-3
    amp: bool = False
    eval_batch_size: int = 256
    patience: int = 20
    seed: int = 2020
    device: str = "auto"
    threads: int | None = None
    output: str = "runs"
    name: str | None = None
    tensorboard: TensorBoard = "auto"
    log_every: int = 50
    save_minutes: float = 10.0

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of its range."""
        for name, allowed in (("objective", get_args(Objective)), ("tensorboard", get_args(TensorBoard))):
            value = getattr(self, name)
            if value not in allowed:
                known = ", ".join(allowed)
                hint = near_miss(str(value), allowed)
                raise ConfigError(f"train.{name}: {value!r} is not one of {known}{hint}")
        for name in ("epochs", "max_steps", "batch_size", "max_tokens", "eval_batch_size", "log_every"):
            check_range(f"train.{name}", getattr(self, name), 1, MAX_COUNT)
        for name in ("patience", "save_minutes"):
            check_range(f"train.{name}", getattr(self, name), 0, MAX_COUNT)
        check_range("train.threads", self.threads, 1, MAX_THREADS)
        check_range("train.seed", self.seed, 0, 2**64 - 1)
        if not (0 < self.lr < math.inf):
            raise ConfigError(f"train.lr: {self.lr} is not above 0")
        if self.name is not None and (self.name in ("", ".", "..") or set(self.name) & set("/\\\0")):
            raise ConfigError(f"train.name: {self.name!r} is not a folder's name; --train.output says where")


# Where, how fast and how loud, not what: a run that changes these alone is its preset's run.
INDIFFERENT = frozenset(
    {"train.output", "train.name", "train.device", "train.threads", "data.path"}
    | {"train.tensorboard", "train.log_every", "train.save_minutes"}
)

# What may change when a run goes on: nothing that alters the weights after a number of steps but by rounding.
# A new data.path is among it, since the data's hash is compared.
RESUMABLE = INDIFFERENT - {"train.output", "train.name"} | {
    "train.epochs",
    "train.max_steps",
    "train.patience",
}


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. `model` is the configuration class of the model `model.name`."""

    model: Any
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    preset: str = DEFAULT_PRESET

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as in a configuration file."""
        sections = {name: asdict(getattr(self, name)) for name in ("model", "data", "train")}
        return {"preset": self.preset, **sections}

    def flat(self) -> dict[str, Any]:
        """Plain values by dotted key, such as "train.lr"."""
        return flatten(self.as_dict())

    def to_yaml(self) -> str:
        """The run folder's config.yaml, itself a valid --config file."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False)


def flatten(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        nested = isinstance(value, Mapping) and len(value) > 0
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def with_absolute_path(config: DataConfig) -> DataConfig:
    """The same with the path absolute, so that a run folder works from any directory.

    Raises:
        ConfigError: it is not a path.
    """
    if config.path == "synthetic":
        return config
    path = given_path(config.path, "data.path")
    try:
        return replace(config, path=str(path.resolve()))
    except RuntimeError as error:  # a loop of links
        raise ConfigError(f"data.path: {config.path}: {error}") from error
