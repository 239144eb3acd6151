"""Draws docs/ml-1m/readme.png: validation NDCG@10 of the causal model beside the published model's.

python -m tools.figures

Reads one CSV per curve from docs/ml-1m, with the columns epoch, valid_ndcg10 and train_seconds.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

FOLDER = Path(__file__).parents[1] / "docs" / "ml-1m"
STYLE = {"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False}
DURATIONS = {60: "1 min", 600: "10 min", 3600: "1 h"}


@dataclass(frozen=True)
class Curve:
    """Validation NDCG@10 by epoch and by seconds of training, evaluation not counted."""

    epochs: list[int]
    scores: list[float]
    seconds: list[float]

    @property
    def best(self) -> int:
        """Index of the first epoch with the highest score."""
        return self.scores.index(max(self.scores))


def read(name: str) -> Curve:
    with (FOLDER / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return Curve(
        epochs=[int(row["epoch"]) for row in rows],
        scores=[float(row["valid_ndcg10"]) for row in rows],
        seconds=list(accumulate(float(row["train_seconds"]) for row in rows)),
    )


def draw_curve(axis: Axes, x: list[float] | list[int], curve: Curve, label: str, color: str) -> None:
    """Draws a curve and marks its best epoch."""
    axis.plot(x, curve.scores, color=color, linewidth=1.8, label=label)
    axis.plot(x[curve.best], curve.scores[curve.best], "o", color=color, markersize=6)


def main() -> None:
    ours, published = read("ml-1m-causal"), read("published")
    gpu = read("ml-1m-causal-h200")  # has only the best epoch
    with plt.rc_context(STYLE):
        figure, (by_epoch, by_time) = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
    draw_curve(by_epoch, ours.epochs, ours, "recgrela, causal", "C0")
    draw_curve(by_epoch, published.epochs, published, "published model", "C1")
    by_epoch.set_ylim(0.10, 0.216)
    by_epoch.set_xlabel("epoch")
    by_epoch.set_ylabel("validation NDCG@10")

    by_time.plot(gpu.seconds, gpu.scores, "*", color="C0", markersize=12, label="recgrela, H200 (best epoch)")
    draw_curve(by_time, ours.seconds, ours, "recgrela, one CPU core", "C0")
    draw_curve(by_time, published.seconds, published, "published log, RTX 4090", "C1")
    by_time.set_xscale("log")
    by_time.set_xticks(list(DURATIONS), list(DURATIONS.values()))
    by_time.minorticks_off()
    by_time.set_xlim(25, 3e4)
    by_time.set_xlabel("training time, logarithmic")

    for axis in (by_epoch, by_time):
        axis.grid(alpha=0.25)
        axis.legend(loc="lower right", frameon=False, borderaxespad=0.2)
    figure.suptitle("MovieLens-1M: all items ranked, seed 2020; a dot marks the best epoch", fontsize=10.5)
    figure.savefig(FOLDER / "readme.png", dpi=180, facecolor="white")


if __name__ == "__main__":
    main()
