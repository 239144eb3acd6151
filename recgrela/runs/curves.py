"""curves.png: loss and validation metrics of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from recgrela.system.console import say
from recgrela.system.errors import one_line
from recgrela.system.files import atomic_write


def draw_curves(path: Path, records: Sequence[Mapping[str, Any]], metric: str, console: Console) -> None:
    """`plot_curves`, but a failure is a note on the console: a picture does not end a run."""
    try:
        plot_curves(path, records, metric)
    except Exception as error:  # matplotlib raises anything, for example if its fonts are damaged
        say(console, f"note: {path.name} is not drawn: {one_line(error) or type(error).__name__}")


def plot_curves(path: Path, records: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Plot records of metrics.jsonl: loss by step, valid metrics by epoch and by training time.

    Args:
        path: the file.
        records: the records.
        metric: the metric that chooses the best epoch; HR with its cut-off is drawn beside it.

    Raises:
        RunError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [record for record in records if record["kind"] in ("epoch", "partial")]
    figure = Figure(figsize=(15, 4), dpi=100)
    canvas = FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.13, top=0.91, wspace=0.18)  # fast to draw
    loss, valid, progress = figure.subplots(1, 3)

    points = [point for record in epochs for point in record["loss_curve"]]
    loss.plot([p[0] for p in points], [p[1] for p in points], lw=0.8, alpha=0.6, label="between readings")
    loss.plot([e["step"] for e in epochs], [e["loss"] for e in epochs], "o-", ms=3, label="epoch mean")
    loss.set(title="Training loss", xlabel="optimization step", ylabel="cross-entropy")

    numbers = [record["epoch"] for record in epochs]
    minutes, total = [], 0.0
    for record in epochs:
        total += record["seconds"] / 60
        minutes.append(total)
    for name in dict.fromkeys((metric, f"HR@{metric.partition('@')[2]}")):
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
    atomic_write(path, canvas.print_png)
