"""The plan of a comparison: its models and runs, checked before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from recgrela.compare.flops import Flops, count_flops
from recgrela.compare.options import Request
from recgrela.data import Interactions, load
from recgrela.models import build
from recgrela.runs.folder import RunFolder
from recgrela.runs.tensorboard import use_tensorboard
from recgrela.settings.data import with_absolute_path
from recgrela.settings.run import RunConfig
from recgrela.system.device import parse_device
from recgrela.system.errors import ConfigError
from recgrela.training.session import check_model


@dataclass(frozen=True)
class Run:
    """A run of the comparison.

    Attributes:
        label: the model's label.
        seed: the run's seed.
        config: the run's settings, with the location of its folder.
    """

    label: str
    seed: int
    config: RunConfig

    @property
    def folder(self) -> RunFolder:
        """The run's folder, which may not exist yet."""
        return RunFolder(Path(self.config.train.output) / str(self.config.train.name))

    @property
    def status(self) -> Literal["new", "interrupted", "finished"]:
        """Whether the run is finished, can be resumed ("interrupted"), or has no checkpoint yet ("new")."""
        if self.folder.results_path.is_file() and self.folder.ranks_path.is_file():
            return "finished"
        return "interrupted" if self.folder.checkpoint_path("last").is_file() else "new"


@dataclass(frozen=True)
class Contender:
    """A model of the comparison.

    Attributes:
        label: the label of its row and runs.
        name: the model's name.
        parameters: number of trained parameters.
        flops: operations for scoring one history of max_len items.
        runs: a run for each seed; all have the model's objective.
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
        """All runs, seed by seed, so that an interrupted comparison covers as many models as possible."""
        return [run for runs in zip(*(c.runs for c in self.contenders), strict=True) for run in runs]


def make_plan(request: Request) -> Plan:
    """Read the data and build each model once; nothing is written.

    Raises:
        ConfigError, DataError: settings that do not suit a model, the data or this machine.
    """
    request = replace(request, data=with_absolute_path(request.data))
    use_tensorboard(request.train.tensorboard)
    parse_device(request.train.device)  # not `use_device`: only the runs use memory on a GPU
    data = load(request.data)
    return Plan(request, data, tuple(_contender(request, label, data) for label in request.models))


def _contender(request: Request, label: str, data: Interactions) -> Contender:
    """Build a model to learn its objectives and size. Raises ConfigError, which names the label."""
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
