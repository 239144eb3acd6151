"""Settings of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from recgrela.settings.fields import (
    LENGTH,
    MAX_COUNT,
    MAX_SEED,
    MAX_THREADS,
    NOTHING,
    PLACE,
    SPEED,
    Settings,
    setting,
)
from recgrela.system.errors import ConfigError

Objective = Literal["last", "all"]
TensorBoard = Literal["auto", "on", "off"]
Decay = Literal["none", "linear", "cosine"]
LossName = Literal["softmax", "sampled_softmax", "gbce"]


@dataclass(frozen=True)
class TrainConfig(Settings):
    """How a model is trained."""

    section: ClassVar[str] = "train"

    objective: Objective = setting(
        "all",
        "Targets of a step: last is one target per prefix of a history (the published way), all is every "
        "position of a window (causal models only).",
    )
    epochs: int = setting(300, "Maximum number of epochs.", min=1, max=MAX_COUNT, affects=LENGTH)
    max_steps: int | None = setting(
        None,
        "Maximum number of optimization steps, even inside an epoch; null for no limit.",
        min=1,
        max=MAX_COUNT,
        affects=LENGTH,
    )
    batch_size: int = setting(
        6400,
        "Number of targets per step: sequences with objective last, items of windows with objective all.",
        min=1,
        max=MAX_COUNT,
    )
    max_tokens: int | None = setting(
        None,
        "Maximum number of items, padding included, in one forward and backward pass; a larger batch takes "
        "several passes and adds up their gradients. null is 16,384 on a CPU and no limit on a GPU.",
        min=1,
        max=MAX_COUNT,
    )
    lr: float = setting(1e-3, "Highest learning rate of Adam.", above=0)
    warmup_steps: int = setting(
        0, "Number of steps in which the learning rate rises to lr.", min=0, max=MAX_COUNT
    )
    lr_decay: Decay = setting("none", "Decay of the learning rate, to zero at the end of the last epoch.")
    loss: LossName = setting(
        "softmax",
        "Loss: softmax over every item; or for large catalogues, on sampled negatives, sampled_softmax "
        "(corrected by the log of their probability) or gbce.",
    )
    label_smoothing: float = setting(
        0.0, "Probability that is spread evenly over all items (loss softmax).", min=0, max=1
    )
    negatives: int = setting(
        1024,
        "Number of items sampled per pass (losses sampled_softmax and gbce).",
        min=1,
        max=MAX_COUNT,
    )
    gbce_t: float = setting(
        0.75,
        "Calibration of gbce: 0 is plain binary cross-entropy, 1 undoes the effect of sampling.",
        min=0,
        max=1,
    )
    amp: bool = setting(
        False, "Run the forward pass in bfloat16 where that is safe (autocast); weights stay float32."
    )
    compile: bool = setting(False, "Compile the code between the ops with torch.compile.")
    cuda_graphs: bool = setting(False, "Launch each step as one CUDA graph (objective all).")
    eval_batch_size: int = setting(256, "Number of users ranked at a time.", min=1, max=MAX_COUNT)
    patience: int = setting(
        20,
        "Stop after more than this many epochs without an improvement of NDCG@10 on the valid split.",
        min=0,
        max=MAX_COUNT,
        affects=LENGTH,
    )
    seed: int = setting(
        2020, "Seed of the weights, of dropout and of the order of samples.", min=0, max=MAX_SEED
    )
    device: str = setting(
        "auto", "Device: cpu, cuda, cuda:N, or auto for the GPU if there is one.", affects=SPEED
    )
    threads: int | None = setting(
        None, "Number of CPU threads; null for PyTorch's default.", min=1, max=MAX_THREADS, affects=SPEED
    )
    output: str = setting("runs", "Folder that contains the run folders.", affects=PLACE)
    name: str | None = setting(
        None, "Name of the run folder; null composes it from data, preset and time.", affects=PLACE
    )
    tensorboard: TensorBoard = setting(
        "auto", "Write TensorBoard events; auto does if the package is installed.", affects=NOTHING
    )
    log_every: int = setting(
        50,
        "Number of steps between two readings of the loss; each makes the host wait for the device.",
        min=1,
        max=MAX_COUNT,
        affects=NOTHING,
    )
    save_minutes: float = setting(
        10.0,
        "Minutes between two checkpoints inside an epoch; each epoch also ends with one.",
        min=0,
        max=MAX_COUNT,
        affects=NOTHING,
    )

    def check_together(self) -> None:
        if self.label_smoothing and self.loss != "softmax":
            raise ConfigError(f"train.label_smoothing goes with train.loss softmax, not with {self.loss}")
        if self.cuda_graphs and self.objective != "all":
            raise ConfigError("train.cuda_graphs goes with train.objective all, whose batches have one size")
        if self.cuda_graphs and self.max_tokens is not None and self.max_tokens < self.batch_size:
            raise ConfigError(
                f"train.cuda_graphs needs the whole batch in one pass: train.max_tokens {self.max_tokens} is "
                f"below train.batch_size {self.batch_size}"
            )
        if self.name is not None and (self.name in ("", ".", "..") or set(self.name) & set("/\\\0")):
            raise ConfigError(f"train.name: {self.name!r} is not a folder's name; --train.output says where")
