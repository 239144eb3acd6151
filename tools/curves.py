"""Draws training curves of runs, and of a published log, by the number of targets trained on.

python -m tools.curves runs/ml-1m-causal [RUN ...] --published docs/ml-1m/published.csv --out docs/ml-1m

Writes a figure and a CSV file for each run (from its metrics.jsonl) to the folder OUT, and prints a table in
Markdown. The published log has the columns epoch, targets, loss and valid_ndcg10.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from recgrela.runs.folder import RunFolder

COLUMNS = (
    *("epoch", "targets", "loss", "valid_hr10", "valid_ndcg10", "valid_ndcg10_seen_removed"),
    *("train_seconds", "eval_seconds"),
)
EPOCHS = (1, 2, 3, 5, 10, 15, 20, 25, 30, 40, 50, 64, 80, 97, 118)


def rows_of_run(path: Path) -> list[dict[str, float]]:
    """A row per epoch of a run folder."""
    rows = []
    targets = 0
    for record in RunFolder.open(path).metrics.read_epochs():
        targets += record["targets"]
        valid, removed = record["valid"]["unmasked"], record["valid"]["masked"]
        scores = (valid["HR@10"], valid["NDCG@10"], removed["NDCG@10"])
        values = (record["loss"], *scores, record["seconds"], record["eval_seconds"])
        rows.append(dict(zip(COLUMNS, (record["epoch"], targets, *values), strict=True)))
    return rows


def rows_of_csv(path: Path) -> list[dict[str, float]]:
    """A row per epoch of a CSV file with the columns of `write_csv`, or some of them."""
    with path.open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return [{**row, "epoch": int(row["epoch"])} for row in rows]


def write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    """Writes rows with six significant digits."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: v if isinstance(v, int) else f"{v:.6g}" for k, v in row.items()})


def draw(path: Path, curves: dict[str, list[dict[str, float]]]) -> None:
    """Draws the loss and valid NDCG@10 of each run side by side."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, key, title in zip(
        axes, ("loss", "valid_ndcg10"), ("training loss", "valid NDCG@10"), strict=True
    ):
        for name, rows in curves.items():
            axis.plot([row["targets"] / 1e6 for row in rows], [row[key] for row in rows], label=name)
        axis.set_xlabel("targets trained on, millions")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[1].legend()
    figure.savefig(path, dpi=120)


def table(curves: dict[str, list[dict[str, float]]]) -> str:
    """A table in Markdown: valid NDCG@10 and the loss after some numbers of epochs, and the best epoch."""
    lines = ["| epochs | " + " | ".join(curves) + " |", "|---" * (len(curves) + 1) + "|"]
    for epoch in EPOCHS:
        found = [next((row for row in rows if row["epoch"] == epoch), None) for rows in curves.values()]
        if any(found):
            cells = [f"{row['valid_ndcg10']:.4f} ({row['loss']:.3f})" if row else "-" for row in found]
            lines.append(f"| {epoch} | " + " | ".join(cells) + " |")
    best = [max(rows, key=lambda row: row["valid_ndcg10"]) for rows in curves.values()]
    lines.append(
        "| best | " + " | ".join(f"{row['valid_ndcg10']:.4f} at {row['epoch']}" for row in best) + " |"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--published", type=Path, help="CSV file of the published log")
    parser.add_argument("--out", type=Path, required=True, help="folder for the CSV files and the figure")
    args = parser.parse_args()
    curves = {path.name: rows_of_run(path) for path in args.runs}
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in curves.items():
        write_csv(args.out / f"{name}.csv", rows)
    if args.published:
        curves["published"] = rows_of_csv(args.published)
    draw(args.out / f"{args.out.name}.png", curves)
    print(table(curves))


if __name__ == "__main__":
    main()
