"""The rows of a comparison's tables, computed from the run folders and from trivial models."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from recgrela.compare.plan import Contender, Run
from recgrela.evaluation.metrics import MISSED, Ranking, metrics_of
from recgrela.evaluation.significance import bootstrap_interval, holm, sign_flip_test
from recgrela.runs import protocol
from recgrela.runs.ranks import Ranks, read_ranks
from recgrela.settings.train import TrainConfig, metric_names
from recgrela.system.errors import RunError

# The items that are ranked, and for which targets; the last two only if some targets are not new.
Variant = Literal["ranked", "removed", "new ranked", "new removed"]
VARIANTS: dict[Variant, str] = {
    "ranked": "all items ranked",
    "removed": "seen items removed, a seen target is a miss",
    "new ranked": "all items ranked, only targets that are new to their user",
    "new removed": "seen items removed, only targets that are new to their user",
}


@dataclass(frozen=True)
class Quality:
    """A model's scores on the test split, in one variant.

    Attributes:
        mean: mean over targets and seeds, by metric.
        deviation: sample standard deviation over seeds, by metric; None for a single seed.
        interval: 95% interval over users of their scores averaged over seeds, by metric.
        p_value: corrected p of the paired test of the comparison's metric against the first network; None
            without a test.
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
    """A row of the tables.

    Attributes:
        label: its label.
        contender: the network; None for a trivial model.
        seeds: seeds of its finished runs.
        failures: reasons of its failed runs, by seed.
        quality: its scores by variant; empty without a finished run.
        lists: means over seeds of the figures of recommended items, by variant "ranked" and "removed"; empty
            without a finished run.
        cost: None without a finished run.
    """

    label: str
    contender: Contender | None
    seeds: list[int]
    failures: dict[int, str]
    quality: dict[Variant, Quality]
    lists: dict[Variant, dict[str, float]]
    cost: Cost | None


@dataclass(frozen=True)
class _Entry:
    """The rankings of a row, one for each seed."""

    ranks: list[Ranks]
    lists: list[Mapping[str, Any]]


def make_rows(
    contenders: Sequence[Contender],
    failures: Mapping[tuple[str, int], str],
    trivial: Mapping[str, Ranking],
    train: TrainConfig,
) -> list[Row]:
    """Read the finished runs and compute the rows: trivial models, then networks.

    Args:
        contenders: the networks; all other rows are tested against the first.
        failures: reasons of failed runs, by label and seed.
        trivial: the rankings of the trivial models, by name.
        train: settings with the cut-offs, and with the metric of the tests.

    Raises:
        RunError: a file of a run is damaged, or two runs ranked different targets.
    """
    finished = {c.label: [run for run in c.runs if (c.label, run.seed) not in failures] for c in contenders}
    entries: dict[str, _Entry] = {}
    for name, ranking in trivial.items():
        entries[name] = _Entry([Ranks.of(ranking)], [ranking.as_dict()["lists"]])
    first: tuple[Run, Ranks] | None = None
    for label, runs in finished.items():
        read = [(run, read_ranks(run.folder.ranks_path, "test")) for run in runs]
        for run, ranks in read:
            first = first or (run, ranks)
            _check_same_targets(first[1], str(first[0].folder.ranks_path), ranks, run)
            for entry in list(entries.values())[: len(trivial)]:
                _check_same_targets(entry.ranks[0], "the data", ranks, run)
        if runs:
            entries[label] = _Entry([ranks for _, ranks in read], [_read_lists(run, train) for run in runs])
    quality = {variant: _qualities(variant, entries, contenders[0].label, train) for variant in VARIANTS}
    rows = []
    for label, contender in [*((name, None) for name in trivial), *((c.label, c) for c in contenders)]:
        runs = finished[label] if contender is not None else []
        failed = {seed: reason for (failed_label, seed), reason in failures.items() if failed_label == label}
        own = {variant: found[label] for variant, found in quality.items() if label in found}
        lists_of = _mean_lists(entries[label].lists) if label in entries else {}
        cost = _cost(runs) if runs else None
        rows.append(Row(label, contender, [run.seed for run in runs], failed, own, lists_of, cost))
    return rows


def environments(contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """The distinct environments of the finished runs; times are not comparable if there are several."""
    found: list[dict[str, Any]] = []
    for run in (run for contender in contenders for run in contender.runs if run.status == "finished"):
        for environment in protocol.environments(run.folder.read_protocol()):
            if environment not in found:
                found.append(environment)
    return found


def _read_lists(run: Run, train: TrainConfig) -> dict[str, Any]:
    """The figures of recommended items of a run. Raises RunError if they are missing or damaged."""
    test = run.folder.read_results()["test"]
    if "lists" not in test or set(test["unmasked"]) != set(metric_names(train.cutoff_numbers)):
        raise RunError(
            f"{run.folder.results_path}: has other figures than this comparison; remove it, and the same "
            "command computes it again"
        )
    lists: dict[str, Any] = test["lists"]
    return lists


def _check_same_targets(first: Ranks, where: str, ranks: Ranks, run: Run) -> None:
    """Raises RunError if two rankings are of different users or targets, or in different orders."""
    for what in ("users", "items"):
        if not np.array_equal(getattr(first, what), getattr(ranks, what)):
            raise RunError(
                f"{run.folder.ranks_path}: the {what} or their order differ from those of {where}, so the "
                "runs cannot be compared"
            )


def _qualities(
    variant: Variant, entries: Mapping[str, _Entry], reference: str, train: TrainConfig
) -> dict[str, Quality]:
    """The scores of each row that has rankings; none for a variant that says nothing else than another."""
    if not entries:
        return {}
    some = next(iter(entries.values())).ranks[0]
    chosen = some.masked < MISSED if variant.startswith("new") else np.ones(len(some.users), dtype=bool)
    if variant.startswith("new") and (chosen.all() or not chosen.any()):
        return {}
    users, cutoffs = some.users[chosen], train.cutoff_numbers
    names = metric_names(cutoffs)
    by_seed = {}
    for label, entry in entries.items():
        ranks = [r.masked if variant.endswith("removed") else r.unmasked for r in entry.ranks]
        by_seed[label] = [metrics_of(torch.from_numpy(r[chosen]), cutoffs).numpy() for r in ranks]
    scores = {label: np.mean(of_seeds, axis=0) for label, of_seeds in by_seed.items()}
    low, high = bootstrap_interval(np.concatenate(list(scores.values()), axis=1), users)
    bounds = np.stack([low, high], axis=1).reshape(len(scores), len(names), 2).tolist()
    p_values = _p_values(scores, users, reference, names.index(train.metric))
    found = {}
    for label, pairs in zip(scores, bounds, strict=True):
        means = [of_seed.mean(0).tolist() for of_seed in by_seed[label]]
        columns = dict(zip(names, zip(*means, strict=True), strict=True))
        mean = {name: statistics.fmean(values) for name, values in columns.items()}
        deviation = {name: statistics.stdev(v) for name, v in columns.items()} if len(means) > 1 else None
        interval = {name: (a, b) for name, (a, b) in zip(names, pairs, strict=True)}
        found[label] = Quality(mean, deviation, interval, p_values.get(label))
    return found


def _p_values(
    scores: Mapping[str, np.ndarray], users: np.ndarray, reference: str, column: int
) -> dict[str, float]:
    """Corrected p of each other row's paired test against the reference; empty if it has no run."""
    others = [label for label in scores if label != reference]
    if reference not in scores or not others:
        return {}
    differences = [scores[label][:, column] - scores[reference][:, column] for label in others]
    corrected = holm(sign_flip_test(np.stack(differences, axis=1), users).tolist())
    return dict(zip(others, corrected, strict=True))


def _mean_lists(lists: Sequence[Mapping[str, Any]]) -> dict[Variant, dict[str, float]]:
    """The mean figures of recommended items over seeds."""
    keys: dict[Variant, str] = {"ranked": "unmasked", "removed": "masked"}
    return {
        variant: {name: statistics.fmean(part[key][name] for part in lists) for name in lists[0][key]}
        for variant, key in keys.items()
    }


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
