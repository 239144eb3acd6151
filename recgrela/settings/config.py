"""Settings of a run, as typed dataclasses; `recgrela.settings.options` reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import yaml

from recgrela.data import DataConfig
from recgrela.settings.cli import MAX_COUNT, MAX_THREADS, check_range
from recgrela.system.errors import ConfigError
from recgrela.system.files import given_path
from recgrela.system.suggest import near_miss

DEFAULT_PRESET = "causal"

Objective = Literal["last", "all"]
TensorBoard = Literal["auto", "on", "off"]
Decay = Literal["none", "linear", "cosine"]
LossName = Literal["softmax", "sampled_softmax", "gbce"]

# A CPU pass of this size keeps its tensors in the caches and in memory that the process already holds; a
# whole published batch, 409,600 slots, spends its time on fresh pages. A GPU takes whole batches.
DEFAULT_MAX_TOKENS = {"cpu": 16_384, "cuda": 1 << 62}


@dataclass(frozen=True)
class TrainConfig:
    """Training.

    Args:
        objective: "last" learns one target per prefix (the published way), "all" every position of a window
            (causal models only).
        epochs: Most epochs.
        max_steps: Stop after this many optimisation steps in all, even inside an epoch; no limit by default.
        batch_size: Targets in a step. With objective "last" that is sequences, with "all" items, of as many
            windows as that takes.
        max_tokens: Most items (padding slots included) in one forward and backward pass; a larger batch is
            done in parts whose gradients add up. 16,384 on a CPU and no limit on a GPU by default.
        lr: Adam's learning rate, the highest.
        warmup_steps: Steps in which the learning rate rises to lr.
        lr_decay: How the learning rate falls, to zero at the end of epochs: none, linear or cosine.
        loss: softmax over every item; or, for very large catalogues, on negatives drawn in each pass:
            sampled_softmax (corrected by the log of their probability) or gbce.
        label_smoothing: Share of the target's probability that goes to all items alike (loss softmax).
        negatives: Items drawn in a pass over the model (losses sampled_softmax and gbce).
        gbce_t: Calibration of gbce: 0 is plain binary cross-entropy, 1 undoes the effect of sampling.
        amp: Run the forward pass in bfloat16 where that is safe (autocast); the weights stay float32.
        compile: Compile what lies between the ops with torch.compile.
        cuda_graphs: Launch a step as one CUDA graph (objective "all").
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
    batch_size: int = 6400
    max_tokens: int | None = None
    lr: float = 1e-3
    warmup_steps: int = 0
    lr_decay: Decay = "none"
    loss: LossName = "softmax"
    label_smoothing: float = 0.0
    negatives: int = 1024
    gbce_t: float = 0.75
    amp: bool = False
    compile: bool = False
    cuda_graphs: bool = False
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
        for name, allowed in (
            ("objective", get_args(Objective)),
            ("lr_decay", get_args(Decay)),
            ("loss", get_args(LossName)),
            ("tensorboard", get_args(TensorBoard)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                known = ", ".join(allowed)
                hint = near_miss(str(value), allowed)
                raise ConfigError(f"train.{name}: {value!r} is not one of {known}{hint}")
        for name in (
            "epochs",
            "max_steps",
            "batch_size",
            "max_tokens",
            "negatives",
            "eval_batch_size",
            "log_every",
        ):
            check_range(f"train.{name}", getattr(self, name), 1, MAX_COUNT)
        for name in ("warmup_steps", "patience", "save_minutes"):
            check_range(f"train.{name}", getattr(self, name), 0, MAX_COUNT)
        for name in ("label_smoothing", "gbce_t"):
            check_range(f"train.{name}", getattr(self, name), 0, 1)
        if self.label_smoothing and self.loss != "softmax":
            raise ConfigError(f"train.label_smoothing goes with train.loss softmax, not with {self.loss}")
        if self.cuda_graphs and self.objective != "all":
            raise ConfigError("train.cuda_graphs goes with train.objective all, whose batches have one size")
        if self.cuda_graphs and self.max_tokens is not None and self.max_tokens < self.batch_size:
            raise ConfigError(
                f"train.cuda_graphs needs the whole batch in one pass: train.max_tokens {self.max_tokens} is "
                f"below train.batch_size {self.batch_size}"
            )
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


def resumable(train: TrainConfig) -> frozenset[str]:
    """The settings, by dotted key, that may change when a run goes on."""
    # A learning rate that falls to zero at the end of the epochs depends on their number.
    return RESUMABLE if train.lr_decay == "none" else RESUMABLE - {"train.epochs"}


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

    def max_tokens(self, device_type: str) -> int:
        """Maximum number of item slots in one pass over the model."""
        return self.train.max_tokens or DEFAULT_MAX_TOKENS[device_type]

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
