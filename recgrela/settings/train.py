"""Settings of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from recgrela.settings.fields import (
    LENGTH,
    MAX_INT,
    MAX_SEED,
    MAX_THREADS,
    NOTHING,
    PLACE,
    SPEED,
    Settings,
    setting,
)
from recgrela.system.errors import ConfigError
from recgrela.system.suggest import near_miss
from recgrela.system.text import quote

Objective = Literal["last", "all"]
TensorBoard = Literal["auto", "on", "off"]
UseGraphs = Literal["auto", "true", "false"]
IfExists = Literal["error", "resume"]
Decay = Literal["none", "linear", "cosine"]
LossName = Literal["softmax", "sampled_softmax", "gbce"]

METRICS = ("HR", "NDCG", "MRR")
CUTOFFS = (5, 10)
MAX_CUTOFF = 1000


def metric_names(cutoffs: Sequence[int] = CUTOFFS) -> tuple[str, ...]:
    """The names of all metrics: "HR@5", "NDCG@5", "MRR@5", "HR@10", ..."""
    return tuple(f"{metric}@{k}" for k in cutoffs for metric in METRICS)


def read_cutoffs(text: str, key: str) -> tuple[int, ...]:
    """The cut-offs in a text such as "5,10,20". Raises ConfigError, which names `key`, for another text."""
    words = [word.strip() for word in text.split(",")]
    numbers = tuple(int(word) for word in words if word.isdecimal() and len(word) <= len(str(MAX_CUTOFF)))
    if len(numbers) < len(words) or not all(1 <= number <= MAX_CUTOFF for number in numbers):
        raise ConfigError(f"{key}: {quote(text)} is not a list of numbers from 1 to {MAX_CUTOFF}, as 5,10,20")
    if list(numbers) != sorted(set(numbers)):
        raise ConfigError(f"{key}: {quote(text)} is not in increasing order without repeats")
    return numbers


@dataclass(frozen=True)
class TrainConfig(Settings):
    """How a model is trained."""

    section: ClassVar[str] = "train"

    objective: Objective = setting(
        "all", "last: one target per prefix of a history, as published; all: every position (causal model)."
    )
    epochs: int = setting(300, "Maximum number of epochs.", min=1, affects=LENGTH)
    max_steps: int | None = setting(None, "Maximum number of steps; null: no limit.", min=1, affects=LENGTH)
    batch_size: int = setting(6400, "Targets per step: sequences (objective last) or items (all).", min=1)
    pieces: int | None = setting(
        None,
        "Pieces with equal numbers of targets that a batch is cut into and that the processes share "
        "(objective all); null: one per process.",
        min=1,
        affects=LENGTH,
    )
    shard_items: bool = setting(
        False,
        "Divide the rows of the item table over the processes, for a table too large for one device.",
        affects=SPEED,
    )
    max_tokens: int | None = setting(
        None,
        "Maximum number of items per pass, with padding; null: 16,384 on a CPU, no limit on a GPU.",
        min=1,
    )
    lr: float = setting(1e-3, "Peak learning rate of Adam.", above=0)
    warmup_steps: int = setting(0, "Steps over which the learning rate rises to lr.", min=0)
    lr_decay: Decay = setting("none", "Decay of the learning rate to zero at the end of the last epoch.")
    loss: LossName = setting("softmax", "softmax over all items, or a loss on sampled negatives.")
    label_smoothing: float = setting(0.0, "Probability spread over all items (softmax).", min=0, max=1)
    negatives: int = setting(1024, "Items sampled per pass (sampled_softmax, gbce).", min=1)
    gbce_t: float = setting(
        0.75,
        "Calibration of gbce, from 0 (plain binary cross-entropy) to 1 (full).",
        min=0,
        max=1,
    )
    amp: bool = setting(False, "Run the forward pass in bfloat16 (autocast); weights stay float32.")
    compile: bool = setting(False, "Compile the code between the ops with torch.compile.")
    cuda_graphs: UseGraphs = setting(
        "auto",
        "Launch steps and batches of evaluation as CUDA graphs; auto: on a GPU, if possible.",
    )
    eval_batch_size: int = setting(256, "Users per evaluation batch.", min=1)
    cutoffs: str = setting(
        ",".join(map(str, CUTOFFS)), "Cut-offs of the metrics, separated by commas: 5,10,20,50,100."
    )
    metric: str = setting(
        "NDCG@10", "Metric of the valid split, all items ranked, by which the best epoch is chosen."
    )
    patience: int = setting(
        20, "Stop after more epochs than this without an improvement of the metric.", min=0, affects=LENGTH
    )
    seed: int = setting(2020, "Seed of weights, dropout and the order of samples.", min=0, max=MAX_SEED)
    device: str = setting("auto", "cpu, cuda, cuda:N, or auto: the GPU if there is one.", affects=SPEED)
    threads: int | None = setting(
        None, "CPU threads; null: PyTorch's default.", min=1, max=MAX_THREADS, affects=SPEED
    )
    output: str = setting("runs", "Folder that contains the run folders.", affects=PLACE)
    name: str | None = setting(
        None, "Name of the run folder; null: composed of data, preset and time.", affects=PLACE
    )
    if_exists: IfExists = setting(
        "error",
        "If a run of this name exists: report an error, or resume it (with the same settings).",
        affects=NOTHING,
    )
    tensorboard: TensorBoard = setting(
        "auto", "Write TensorBoard events; auto: if the package is installed.", affects=NOTHING
    )
    log_every: int = setting(50, "Steps between readings of the loss.", min=1, affects=NOTHING)
    save_minutes: float = setting(
        10.0,
        "Minutes between checkpoints within an epoch.",
        min=0,
        max=MAX_INT,
        affects=NOTHING,
    )

    def wants_graphs(self, device_type: str) -> bool:
        """Whether to use CUDA graphs where they are possible.

        Raises:
            ConfigError: they are required on a device that has none.
        """
        if self.cuda_graphs == "true" and device_type != "cuda":
            raise ConfigError("train.cuda_graphs: true needs a GPU, but this run uses the CPU; use auto")
        return self.cuda_graphs != "false" and device_type == "cuda"

    @property
    def cutoff_numbers(self) -> tuple[int, ...]:
        """The cut-offs as numbers, ascending."""
        return read_cutoffs(self.cutoffs, "train.cutoffs")

    def check_together(self) -> None:
        names = metric_names(self.cutoff_numbers)
        if self.metric not in names:
            raise ConfigError(
                f"train.metric: {quote(self.metric)} is not one of {', '.join(names)}, the metrics at the "
                f"cut-offs {self.cutoffs} of train.cutoffs{near_miss(self.metric, names)}"
            )
        if self.label_smoothing and self.loss != "softmax":
            raise ConfigError(
                f"train.label_smoothing: {self.label_smoothing} requires train.loss softmax, not {self.loss}"
            )
        if self.if_exists == "resume" and self.name is None:
            raise ConfigError("train.if_exists: resume needs train.name, the name of the run")
        if self.name is not None and (self.name in ("", ".", "..") or set(self.name) & set("/\\\0")):
            raise ConfigError(
                f"train.name: {self.name!r} is not a folder name; --train.output sets the parent folder"
            )
