"""What a comparison will do, and whether it can: nothing is trained before all of it is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from recgrela.compare.flops import Flops, count_flops
from recgrela.compare.options import Request
from recgrela.data import Interactions, load
from recgrela.models import CONFIGS, build
from recgrela.runs.folder import RunFolder
from recgrela.runs.report import check_tensorboard
from recgrela.runs.saved import check_data
from recgrela.settings.data import DataConfig, with_absolute_path
from recgrela.settings.fields import options_of
from recgrela.settings.run import RunConfig, read_config
from recgrela.settings.train import TrainConfig
from recgrela.settings.yaml import flatten, read_yaml
from recgrela.system.errors import ConfigError, RunError
from recgrela.system.files import atomic_write_text
from recgrela.system.runtime import find_device
from recgrela.training.session import check_model

MANIFEST = "comparison.yaml"
LOCK = ".lock"


@dataclass(frozen=True)
class Run:
    """One run of the comparison.

    Attributes:
        label, seed: which one.
        config: its settings, the place of its folder included.
    """

    label: str
    seed: int
    config: RunConfig

    @property
    def folder(self) -> RunFolder:
        """Where it is, or will be."""
        return RunFolder(Path(self.config.train.output) / str(self.config.train.name))

    @property
    def status(self) -> Literal["new", "cut", "finished"]:
        """A run that was cut before its first checkpoint has nothing to go on from, so it is new."""
        if self.folder.results_path.is_file() and self.folder.ranks_path.is_file():
            return "finished"
        return "cut" if self.folder.checkpoint_path("last").is_file() else "new"


@dataclass(frozen=True)
class Contender:
    """A model of the comparison.

    Attributes:
        label: of its rows and runs.
        name: the model's.
        parameters: that are trained.
        flops: of scoring one history of max_len items.
        runs: one a seed; they all have the model's objective.
    """

    label: str
    name: str
    parameters: int
    flops: Flops
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Plan:
    """A checked request, its data, and its models in the order of the table."""

    request: Request
    data: Interactions
    contenders: tuple[Contender, ...]

    @property
    def runs(self) -> list[Run]:
        """Seed by seed, so that a comparison that is cut short has as many models as can be."""
        return [run for runs in zip(*(c.runs for c in self.contenders), strict=True) for run in runs]


def make_plan(request: Request) -> Plan:
    """Read the data and build each model once; writes nothing.

    Raises:
        ConfigError, DataError: settings that do not fit a model, the data or this machine.
        RunError: the folder holds another comparison, or something else.
    """
    request = replace(request, data=with_absolute_path(request.data))
    _check_folder(request)
    check_tensorboard(request.train.tensorboard)
    find_device(request.train.device)  # not picked: the runs alone take memory on a GPU
    data = load(request.data)
    return Plan(request, data, tuple(_contender(request, label, data) for label in request.models))


def claim_folder(plan: Plan) -> None:
    """Check what is in the folder, and write comparison.yaml; whoever calls it holds the folder's lock.

    Raises:
        RunError: the folder holds another comparison, or a run of other settings or data, or it cannot be
            written.
    """
    _check_folder(plan.request)  # again: another comparison may have been there while the data was read
    for run in plan.runs:
        _check_run(run, plan.data)
    manifest = yaml.safe_dump(plan.request.as_dict(), sort_keys=False)
    atomic_write_text(plan.request.out / MANIFEST, manifest)


def _contender(request: Request, label: str, data: Interactions) -> Contender:
    """Build the model to see what it trains on, and count. Raises ConfigError that names the label."""
    config = request.models[label]
    with torch.random.fork_rng(devices=[]):
        try:
            model = build(config, data.n_items, request.data.max_len)
            auto: Literal["all", "last"] = "all" if "all" in model.trains_on else "last"
            objective = auto if request.objective == "auto" else request.objective
            runs = tuple(Run(label, s, request.run_config(label, objective, s)) for s in request.seeds)
            check_model(model, runs[0].config)
        except ConfigError as error:
            raise ConfigError(f"{label}: {error}") from error
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Contender(label, config.name, parameters, count_flops(model), runs)


def _check_folder(request: Request) -> None:
    """Raises RunError if the folder is of another comparison, or of none."""
    out, manifest = request.out, request.out / MANIFEST
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file; --out names the folder of the comparison")
    if not manifest.is_file():
        if out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
            raise RunError(
                f"{out}: not empty, and not a comparison ({MANIFEST} missing); choose another --out"
            )
        return
    before, now = flatten(read_yaml(manifest)), flatten(request.as_dict())
    _check_same(before, now, manifest, ("data", "train", *(f"model.{label}" for label in request.models)))


def _check_run(run: Run, data: Interactions) -> None:
    """Raises RunError if the run's folder holds a run of other settings or data, or only its results."""
    folder = run.folder
    if run.status == "new" and folder.results_path.is_file():
        raise RunError(
            f"{folder.path}: has results, but neither {folder.ranks_path.name} nor a last checkpoint to make "
            "it from; restore one, or remove the folder to train anew"
        )
    if not folder.config_path.is_file() or not folder.protocol_path.is_file():
        return  # cut while the folder was made: it is made again
    before, now = read_config(folder.config_path, CONFIGS).flat(), run.config.flat()
    _check_same(before, now, folder.config_path, ("model", "data", "train"))
    check_data(folder, data)


def _check_same(
    before: Mapping[str, Any], now: Mapping[str, Any], path: Path, sections: tuple[str, ...]
) -> None:
    """Raises RunError if a setting has another value; a section that was not there is no difference."""
    shared = options_of(DataConfig) | options_of(TrainConfig)
    free = {key for key, option in shared.items() if not option.affects.comparison}
    for section in sections:
        keys = [key for key in {**before, **now} if key.startswith(f"{section}.")]
        if not any(key in before for key in keys):
            continue
        for key in keys:
            if key not in free and before.get(key) != now.get(key):
                raise RunError(
                    f"{path}: {key} is {before.get(key)!r} there, and {now.get(key)!r} is asked for; give "
                    "the same, or another --out (or for a model another label: LABEL=NAME)"
                )
