"""What a run shows: tables, curves and TensorBoard."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from recgrela.evaluation.metrics import NAMES, Ranking
from recgrela.system.console import say
from recgrela.system.errors import ConfigError
from recgrela.system.files import atomic_write

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def metrics_table(rankings: Mapping[str, Ranking]) -> Table:
    """A row per split and masking; splits in the order given."""
    table = Table()
    table.add_column("split")
    table.add_column("seen items")
    for name in NAMES:
        table.add_column(name, justify="right")
    for split, ranking in rankings.items():
        for seen, values in (("ranked", ranking.values), ("removed", ranking.masked)):
            table.add_row(split, seen, *(f"{values[name]:.4f}" for name in NAMES))
    return table


def tie_notes(rankings: Mapping[str, Ranking]) -> list[str]:
    """A line for each split where ties decided a figure."""
    return [
        f"{split}: ties counted against the model for {ranking.ties} of {ranking.users} users "
        f"({ranking.masked_ties} with seen items removed)"
        for split, ranking in rankings.items()
        if ranking.ties or ranking.masked_ties
    ]


def show_rankings(console: Console, rankings: Mapping[str, Ranking], title: str) -> None:
    """Print a line of title, the table, and what there is to say about ties."""
    say(console, title)
    console.print(metrics_table(rankings))
    for note in tie_notes(rankings):
        say(console, note)


def plot_curves(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw the records of metrics.jsonl: loss by step and epoch, valid metrics by epoch and by time.

    Raises:
        RunError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and needed once a run
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [record for record in records if record["kind"] in ("epoch", "partial")]
    figure = Figure(figsize=(15, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, valid, progress = figure.subplots(1, 3)

    points = [point for record in epochs for point in record["loss_curve"]]
    loss.plot([p[0] for p in points], [p[1] for p in points], lw=0.8, alpha=0.6, label="between readings")
    loss.plot([e["step"] for e in epochs], [e["loss"] for e in epochs], "o-", ms=3, label="epoch mean")
    loss.set(title="Training loss", xlabel="optimisation step", ylabel="cross-entropy")

    numbers = [record["epoch"] for record in epochs]
    minutes, total = [], 0.0
    for record in epochs:
        total += record["seconds"] / 60
        minutes.append(total)
    for name in ("NDCG@10", "HR@10"):
        values = [record["valid"]["unmasked"][name] for record in epochs]
        valid.plot(numbers, values, "o-", ms=3, label=name)
        progress.plot(minutes, values, "o-", ms=3, label=name)
    improved = [record["epoch"] for record in epochs if record["improved"]]
    if improved:
        valid.axvline(improved[-1], color="grey", ls=":", label=f"best epoch {improved[-1]}")
    valid.set(title="Valid split, all items ranked", xlabel="epoch")
    valid.xaxis.set_major_locator(MaxNLocator(integer=True))
    progress.set(title="Learning progress", xlabel="training time, minutes")
    for axes in (loss, valid, progress):
        axes.grid(alpha=0.3)
        axes.legend()
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=100))


def check_tensorboard(mode: str) -> bool:
    """Whether to write TensorBoard events. Raises ConfigError for "on" without the package."""
    installed = importlib.util.find_spec("tensorboard") is not None
    if mode == "on" and not installed:
        raise ConfigError(
            "train.tensorboard: on, but the package tensorboard is not installed (pip install tensorboard)"
        )
    return mode != "off" and installed


def open_tensorboard(folder: Path) -> SummaryWriter:
    """A writer in `folder`, also a context manager."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    return SummaryWriter(str(folder))


def write_scalars(writer: SummaryWriter, record: Mapping[str, Any]) -> None:
    """The record of an epoch as TensorBoard scalars by optimisation step."""
    for step, value in record["loss_curve"]:
        writer.add_scalar("train/loss", value, step)
    writer.add_scalar("train/epoch_loss", record["loss"], record["step"])
    writer.add_scalar("train/targets_per_second", record["targets_per_second"], record["step"])
    for kind in ("unmasked", "masked"):
        for name, value in record["valid"][kind].items():
            writer.add_scalar(f"valid_{kind}/{name.replace('@', '_')}", value, record["step"])
    writer.flush()
