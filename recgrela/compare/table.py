"""The rows of the comparison's table, from the run folders."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recgrela.compare.plan import Contender, Run
from recgrela.evaluation.metrics import NAMES, metrics_of
from recgrela.evaluation.statistics import bootstrap_interval, holm, sign_flip_test
from recgrela.runs.protocol import started_in
from recgrela.system.errors import RunError

TESTED = "NDCG@10"


@dataclass(frozen=True)
class Quality:
    """A model's scores on the test split, all items ranked.

    Attributes:
        mean: over seeds, by metric.
        deviation: over seeds (n - 1), by metric; None of one seed.
        interval: 95 %, over users, of their scores averaged over seeds, by metric.
        p_value: of the paired test of NDCG@10 against the first model, corrected; None where there is none.
    """

    mean: dict[str, float]
    deviation: dict[str, float] | None
    interval: dict[str, tuple[float, float]]
    p_value: float | None


@dataclass(frozen=True)
class Cost:
    """What a model's training took.

    Attributes:
        epoch_seconds: median over all whole epochs, without evaluation; None where there was none.
        epochs, best_epochs: trained, and chosen on the valid split, of each seed.
        peak_memory: bytes, the most of any run; None where the system does not tell.
    """

    epoch_seconds: float | None
    epochs: list[int]
    best_epochs: list[int]
    peak_memory: int | None


@dataclass(frozen=True)
class Row:
    """A model of the table; quality and cost are None if no run of it was finished.

    Attributes:
        contender: the model.
        seeds: of its finished runs.
        failures: why the others failed, by seed.
    """

    contender: Contender
    seeds: list[int]
    failures: dict[int, str]
    quality: Quality | None
    cost: Cost | None


def make_rows(contenders: Sequence[Contender], failures: Mapping[tuple[str, int], str]) -> list[Row]:
    """Read the finished runs and compute the table.

    Args:
        contenders: the models; the first is what the others are tested against.
        failures: by label and seed.

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
        failed = {seed: reason for (of, seed), reason in failures.items() if of == label}
        seeds = [run.seed for run in runs]
        rows.append(Row(contender, seeds, failed, quality, _cost(runs) if runs else None))
    return rows


def surroundings(contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """The different ones that the finished runs were made in: times of more than one do not compare."""
    found: list[dict[str, Any]] = []
    for run in (run for contender in contenders for run in contender.runs if run.status == "finished"):
        for place in started_in(run.folder.read_protocol()):
            if place not in found:
                found.append(place)
    return found


def _scores(finished: Mapping[str, Sequence[Run]]) -> dict[str, np.ndarray]:
    """By label, each user's scores [U, len(NAMES)], averaged over the model's runs.

    Raises:
        RunError: a run ranked other users, or in another order.
    """
    first: tuple[Run, np.ndarray] | None = None
    scores = {}
    for label, runs in finished.items():
        of_runs = []
        for run in runs:
            ranks = run.folder.read_ranks("test")
            first = first or (run, ranks.users)
            if not np.array_equal(first[1], ranks.users):
                raise RunError(
                    f"{run.folder.ranks_path}: not the users of {first[0].folder.ranks_path}, or in another "
                    "order: the two do not compare"
                )
            of_runs.append(metrics_of(torch.from_numpy(ranks.unmasked)).numpy())
        scores[label] = np.mean(of_runs, axis=0)
    return scores


def _intervals(scores: Mapping[str, np.ndarray]) -> dict[str, dict[str, tuple[float, float]]]:
    """The bootstrap's interval of each model and metric."""
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
    """Holm's p of each other model's paired test against the reference; none if that has no run."""
    others = [label for label in scores if label != reference]
    if reference not in scores or not others:
        return {}
    column = NAMES.index(TESTED)
    differences = [scores[label][:, column] - scores[reference][:, column] for label in others]
    corrected = holm(sign_flip_test(np.stack(differences, axis=1)).tolist())
    return dict(zip(others, corrected, strict=True))


def _quality(runs: Sequence[Run], interval: dict[str, tuple[float, float]], p_value: float | None) -> Quality:
    results = [run.folder.read_json(run.folder.results_path) for run in runs]
    values = {name: [result["test"]["unmasked"][name] for result in results] for name in NAMES}
    mean = {name: statistics.fmean(of) for name, of in values.items()}
    deviation = {name: statistics.stdev(of) for name, of in values.items()} if len(runs) > 1 else None
    return Quality(mean, deviation, interval, p_value)


def _cost(runs: Sequence[Run]) -> Cost:
    records = [run.folder.read_metrics() for run in runs]
    epochs = [[record for record in of_run if record["kind"] == "epoch"] for of_run in records]
    seconds = [epoch["seconds"] for of_run in epochs for epoch in of_run]
    peaks = [
        record.get("peak_memory") for of_run in records for record in of_run if record["kind"] != "final"
    ]
    known = [peak for peak in peaks if peak is not None]
    return Cost(
        epoch_seconds=statistics.median(seconds) if seconds else None,
        epochs=[len(of_run) for of_run in epochs],
        best_epochs=[run.folder.read_json(run.folder.results_path)["epoch"] for run in runs],
        peak_memory=max(known) if known else None,
    )
