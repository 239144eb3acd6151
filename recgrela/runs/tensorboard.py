"""TensorBoard events of a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from recgrela.system.console import say
from recgrela.system.errors import ConfigError, one_line

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


class EventLog:
    """TensorBoard events of a run, up to the first failure to write them.

    A failure, such as a full disk, is a note on the console and does not end the run.

    Args:
        folder: the folder of the events, created when the context is entered.
        console: the output.
    """

    def __init__(self, folder: Path, console: Console) -> None:
        self._folder, self._console = folder, console
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> EventLog:
        self._try(self._open)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._try(self._writer.close)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the record of an epoch as scalars by optimization step."""
        writer = self._writer
        if writer is not None:
            self._try(lambda: write_scalars(writer, record))

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer = SummaryWriter(str(self._folder))

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # the writer's thread passes on whatever its file system raises
            self._writer = None
            reason = one_line(error) or type(error).__name__
            say(self._console, f"note: no more TensorBoard events are written: {reason}")


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
