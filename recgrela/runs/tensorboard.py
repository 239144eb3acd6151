"""TensorBoard events of a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recgrela.system.errors import ConfigError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def use_tensorboard(mode: str) -> bool:
    """Whether to write events. Raises ConfigError for "on" if the package is not installed.

    Args:
        mode: the setting train.tensorboard: "auto", "on" or "off".
    """
    installed = importlib.util.find_spec("tensorboard") is not None
    if mode == "on" and not installed:
        raise ConfigError(
            "train.tensorboard is on, but the package tensorboard is not installed; pip install tensorboard"
        )
    return mode != "off" and installed


def open_writer(folder: Path) -> SummaryWriter:
    """A writer in `folder`, also a context manager."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    return SummaryWriter(str(folder))


def write_scalars(writer: SummaryWriter, record: Mapping[str, Any]) -> None:
    """Write the record of an epoch as scalars by optimization step."""
    for step, value in record["loss_curve"]:
        writer.add_scalar("train/loss", value, step)
    writer.add_scalar("train/epoch_loss", record["loss"], record["step"])
    writer.add_scalar("train/targets_per_second", record["targets_per_second"], record["step"])
    for kind in ("unmasked", "masked"):
        for name, value in record["valid"][kind].items():
            writer.add_scalar(f"valid_{kind}/{name.replace('@', '_')}", value, record["step"])
    writer.flush()
