"""Plots of a data set: lengths of histories, popularity of items, events over time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from recgrela.data.dates import to_iso
from recgrela.data.interactions import Interactions
from recgrela.data.statistics import UserTimes, item_counts
from recgrela.system.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Image = Literal["png", "svg"]
_BINS = 60  # of times
_LENGTHS = 24  # bins of equal ratio, rounded to whole lengths
_POINTS = 1000  # of a curve


def draw(data: Interactions, times: UserTimes | None, folder: Path, image: Image) -> list[Path]:
    """Draw the plots of a data set.

    Args:
        data: the interactions.
        times: their times; None: without the plot of events over time.
        folder: the folder of the files, which exists; files of the same names are replaced.
        image: the format.

    Returns:
        The files: lengths, popularity and times, with the format as suffix.

    Raises:
        RunError: a file cannot be written.
    """
    plots: dict[str, Callable[[Axes], None]] = {
        "lengths": lambda axes: _lengths(axes, np.diff(data.host_offsets())),
        "popularity": lambda axes: _popularity(axes, item_counts(data)),
    }
    if times is not None:
        plots["times"] = lambda axes: _times(axes, times.times, times.unit)
    return [_write(folder / f"{name}.{image}", plot, image) for name, plot in plots.items()]


def _write(path: Path, plot: Callable[[Axes], None], image: Image) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    plot(axes)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format=image))
    return path


def _lengths(axes: Axes, lengths: np.ndarray) -> None:
    edges = np.geomspace(lengths.min(), lengths.max() + 1, _LENGTHS + 1)
    counts, edges = np.histogram(lengths, np.unique(np.round(edges)))
    axes.stairs(counts, edges, fill=True, alpha=0.6)
    median = float(np.median(lengths))
    axes.axvline(median, color="grey", ls=":", label=f"median {median:,.0f}")
    axes.set(title="Lengths of histories", xlabel="events of a user", ylabel="users", xscale="log")
    axes.legend()


def _popularity(axes: Axes, counts: np.ndarray) -> None:
    ordered = np.sort(counts)[::-1]
    ranks = np.unique(np.geomspace(1, ordered.size, _POINTS).astype(np.int64))
    axes.plot(ranks, ordered[ranks - 1])
    labels = {"xlabel": "rank of the item", "ylabel": "events of the item"}
    axes.set(title="Popularity of items", xscale="log", yscale="log", **labels)


def _times(axes: Axes, times: np.ndarray, unit: int | None) -> None:
    first, last = times.min().item(), times.max().item()
    counts, edges = np.histogram(times, _BINS)
    if unit is None or None in (to_iso(first, unit), to_iso(last, unit)):
        axes.stairs(counts, edges, fill=True, alpha=0.6)
        axes.set(xlabel="time")
    else:
        dates = [datetime.fromtimestamp(edge / unit, timezone.utc) for edge in edges.tolist()]
        axes.bar(dates[:-1], counts, np.diff(dates), align="edge", alpha=0.6)  # type: ignore[arg-type]
        axes.tick_params(axis="x", rotation=30)
        axes.set(xlabel="date, UTC")
    axes.set(title="Events over time", ylabel="events")
