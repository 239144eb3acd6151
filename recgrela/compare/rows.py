"""The rows of a comparison's table, computed from the run folders."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recgrela.compare.plan import Contender, Run
from recgrela.evaluation.metrics import NAMES, metrics_of
from recgrela.evaluation.significance import bootstrap_interval, holm, sign_flip_test
from recgrela.runs import protocol
from recgrela.runs.ranks import read_ranks
from recgrela.system.errors import RunError

TESTED = "NDCG@10"


@dataclass(frozen=True)
class Quality:
    """A model's scores on the test split, all items ranked.

    Attributes:
        mean: mean over seeds, by metric.
        deviation: sample standard deviation over seeds, by metric; None for a single seed.
        interval: 95% interval over users of their scores averaged over seeds, by metric.
        p_value: corrected p of the paired test of NDCG@10 against the first model; None without a test.
    """

    mean: dict[str, float]
    deviation: dict[str, float] | None
    interval: dict[str, tuple[float, float]]
    p_value: float | None


@dataclass(frozen=True)
class Cost:
    """The cost of a model's training.

    Attributes:
        epoch_seconds: median over all complete epochs, without evaluation; None without one.
        epochs: number of epochs of each seed's run.
        best_epochs: the epoch of each seed's run with the best valid score.
        peak_memory: maximum over runs, in bytes; None if the system does not report it.
    """

    epoch_seconds: float | None
    epochs: list[int]
    best_epochs: list[int]
    peak_memory: int | None


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        contender: the model.
        seeds: seeds of its finished runs.
        failures: reasons of its failed runs, by seed.
        quality, cost: None without a finished run.
    """

    contender: Contender
    seeds: list[int]
    failures: dict[int, str]
    quality: Quality | None
    cost: Cost | None


def make_rows(contenders: Sequence[Contender], failures: Mapping[tuple[str, int], str]) -> list[Row]:
    """Read the finished runs and compute the table.

    Args:
        contenders: the models; the others are tested against the first.
        failures: reasons of failed runs, by label and seed.

    Raises:
        RunError: a file of a run is damaged, or two runs ranked different users.
    """
    finished = {c.label: [run for run in c.runs if (c.label, run.seed) not in failures] for c in contenders}
    scores = _scores({label: runs for label, runs in finished.items() if runs})
    intervals, p_values = _intervals(scores), _p_values(scores, contenders[0].label)
    rows = []
    for contender in contenders:
        label, runs = contender.label, finished[contender.label]
        quality = _quality(runs, intervals[label], p_values.get(label)) if runs else None
        failed = {seed: reason for (failed_label, seed), reason in failures.items() if failed_label == label}
        seeds = [run.seed for run in runs]
        rows.append(Row(contender, seeds, failed, quality, _cost(runs) if runs else None))
    return rows


def environments(contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """The distinct environments of the finished runs; times are not comparable if there are several."""
    found: list[dict[str, Any]] = []
    for run in (run for contender in contenders for run in contender.runs if run.status == "finished"):
        for environment in protocol.environments(run.folder.read_protocol()):
            if environment not in found:
                found.append(environment)
    return found


def _scores(finished: Mapping[str, Sequence[Run]]) -> dict[str, np.ndarray]:
    """Each user's scores [U, len(NAMES)], averaged over the model's runs, by label.

    Raises:
        RunError: two runs ranked different users, or in different orders.
    """
    first: tuple[Run, np.ndarray] | None = None
    scores = {}
    for label, runs in finished.items():
        run_scores = []
        for run in runs:
            ranks = read_ranks(run.folder.ranks_path, "test")
            first = first or (run, ranks.users)
            if not np.array_equal(first[1], ranks.users):
                raise RunError(
                    f"{run.folder.ranks_path}: the users or their order differ from those of "
                    f"{first[0].folder.ranks_path}, so the runs cannot be compared"
                )
            run_scores.append(metrics_of(torch.from_numpy(ranks.unmasked)).numpy())
        scores[label] = np.mean(run_scores, axis=0)
    return scores


def _intervals(scores: Mapping[str, np.ndarray]) -> dict[str, dict[str, tuple[float, float]]]:
    """The bootstrap interval of each model and metric."""
    if not scores:
        return {}
    low, high = bootstrap_interval(np.concatenate(list(scores.values()), axis=1))
    pairs = list(zip(low.tolist(), high.tolist(), strict=True))
    size = len(NAMES)
    return {
        label: dict(zip(NAMES, pairs[i * size : (i + 1) * size], strict=True))
        for i, label in enumerate(scores)
    }


def _p_values(scores: Mapping[str, np.ndarray], reference: str) -> dict[str, float]:
    """Corrected p of each other model's paired test against the reference; empty if it has no run."""
    others = [label for label in scores if label != reference]
    if reference not in scores or not others:
        return {}
    column = NAMES.index(TESTED)
    differences = [scores[label][:, column] - scores[reference][:, column] for label in others]
    corrected = holm(sign_flip_test(np.stack(differences, axis=1)).tolist())
    return dict(zip(others, corrected, strict=True))


def _quality(runs: Sequence[Run], interval: dict[str, tuple[float, float]], p_value: float | None) -> Quality:
    results = [run.folder.read_results() for run in runs]
    values = {name: [result["test"]["unmasked"][name] for result in results] for name in NAMES}
    mean = {name: statistics.fmean(scores) for name, scores in values.items()}
    deviation = {name: statistics.stdev(scores) for name, scores in values.items()} if len(runs) > 1 else None
    return Quality(mean, deviation, interval, p_value)


def _cost(runs: Sequence[Run]) -> Cost:
    epochs = [run.folder.metrics.read_epochs() for run in runs]
    seconds = [epoch["seconds"] for run_epochs in epochs for epoch in run_epochs]
    records = [record for run in runs for record in run.folder.metrics.read()]
    peaks = [record["peak_memory"] for record in records if record.get("peak_memory") is not None]
    return Cost(
        epoch_seconds=statistics.median(seconds) if seconds else None,
        epochs=[len(run_epochs) for run_epochs in epochs],
        best_epochs=[run.folder.read_results()["epoch"] for run in runs],
        peak_memory=max(peaks) if peaks else None,
    )
