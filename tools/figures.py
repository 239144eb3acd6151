"""Draws docs/ml-1m/readme.png: validation curves and test scores of the models on MovieLens-1M.

python -m tools.figures

Reads from docs/ml-1m: curves.csv, with the columns model, seed, epoch and valid_ndcg10_seen_removed, and the
table.csv of `recgrela.compare`.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

FOLDER = Path(__file__).parents[1] / "docs" / "ml-1m"
STYLE = {"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False}
SCORE = "removed NDCG@10"  # a column of table.csv, with " low" and " high"


def read(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with (FOLDER / name).open(newline="") as file:
        return list(csv.DictReader(file))


def curves() -> dict[str, np.ndarray]:
    """[seeds, epochs] validation scores of each model."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in read("curves.csv"):
        found[row["model"]][row["seed"]].append(float(row["valid_ndcg10_seen_removed"]))
    return {model: np.array(list(seeds.values())) for model, seeds in found.items()}


def draw_curves(axis: Axes, scores: dict[str, np.ndarray], colors: dict[str, str]) -> None:
    """Draws the mean over seeds and the range of the seeds."""
    for model, of_seeds in scores.items():
        epochs = np.arange(1, of_seeds.shape[1] + 1)
        axis.plot(epochs, of_seeds.mean(0), color=colors[model], linewidth=1.8, label=model)
        axis.fill_between(epochs, of_seeds.min(0), of_seeds.max(0), color=colors[model], alpha=0.2)
    axis.set_ylim(0.10, 0.23)
    axis.set_xlabel("epoch")
    axis.set_ylabel("validation NDCG@10")
    axis.legend(loc="lower right", frameon=False)


def draw_scores(axis: Axes, colors: dict[str, str]) -> None:
    """Draws the test score of each row of the table, with its interval over users."""
    rows = sorted(read("table.csv"), key=lambda row: float(row[SCORE]))
    for place, row in enumerate(rows):
        score, low, high = (float(row[f"{SCORE}{end}"]) for end in ("", " low", " high"))
        color = colors.get(row["label"], "0.45")
        axis.errorbar(score, place, xerr=[[score - low], [high - score]], fmt="o", color=color, capsize=3)
    axis.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axis.set_xlim(left=0)
    axis.set_xlabel("test NDCG@10, 95 % intervals over users")


def main() -> None:
    scores = curves()
    colors = {model: f"C{number}" for number, model in enumerate(scores)}
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    draw_curves(left, scores, colors)
    draw_scores(right, colors)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    figure.suptitle("MovieLens-1M, exact order of time, seen items removed, three seeds", fontsize=10.5)
    figure.savefig(FOLDER / "readme.png", dpi=180, facecolor="white")


if __name__ == "__main__":
    main()
