"""Reads the settings of a comparison: defaults < preset < configuration files < command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from recgrela.evaluation.baselines import TRIVIAL_MODELS
from recgrela.models import CONFIGS
from recgrela.settings.command_line import Parser
from recgrela.settings.data import DataConfig
from recgrela.settings.fields import MAX_SEED, Option, options_of
from recgrela.settings.merge import (
    CONFIG,
    PRESET,
    Source,
    for_models,
    make,
    merge,
    named_errors,
    read_sources,
)
from recgrela.settings.model import ModelConfig
from recgrela.settings.run import RunConfig
from recgrela.settings.train import Objective, TrainConfig
from recgrela.system.errors import ConfigError
from recgrela.system.files import expand_path
from recgrela.system.suggest import near_miss

USAGE = "%(prog)s --models MODEL ... --out OUT [--SECTION.KEY VALUE ...]"
DESCRIPTION = """Train several models on the same data, split, seeds and training settings, and write one
table: ranking quality with confidence intervals and significance tests, training time, memory and FLOPs. Each
run is a run folder of recgrela.train in OUT/runs. To resume a stopped comparison, repeat the command."""
EPILOG = "The settings of a model are --model.LABEL.KEY; --help lists them for the models of --models."

RequestedObjective = Literal["auto", "last", "all"]

MODELS = Option(
    "models",
    [],
    "Models to compare, each as NAME or LABEL=NAME; every other model is tested against the first. "
    f"Names: {', '.join(CONFIGS)}.",
    many="store",
)
SEEDS = Option("seeds", [2020], "Seeds of each model's runs.", kind=int, many="store", min=0, max=MAX_SEED)
OUT = Option("out", None, "Folder of the comparison.")
OBJECTIVE = Option(
    "train.objective",
    "auto",
    "last: one target per prefix of a history; all: every position; auto: all for models that support it.",
    choices=get_args(RequestedObjective),
)

# Settings that differ between the runs of a comparison, and what to give instead.
OWN_SETTINGS = {
    "train.seed": "give --seeds",
    "train.output": "give --out",
    "train.name": "a run's name is its seed",
}


@dataclass(frozen=True)
class Request:
    """A comparison.

    Attributes:
        models: Settings of each model by its label, in the order of the table.
        data, train: Settings that all runs share; each run has its own seed, objective, output and name.
        objective: Objective of all models; "auto" is "all" for a model that trains on every position, else
            "last".
        seeds: Seeds of each model's runs.
        preset: Name of the preset that the settings started from.
        out: Folder of the comparison.
    """

    models: dict[str, ModelConfig]
    data: DataConfig
    train: TrainConfig
    objective: RequestedObjective
    seeds: tuple[int, ...]
    preset: str
    out: Path

    def run_config(self, label: str, objective: Objective, seed: int) -> RunConfig:
        """The settings of one run, whose folder is out/runs/label/seed."""
        output = str(self.out / "runs" / label)
        train = replace(self.train, objective=objective, seed=seed, output=output, name=str(seed))
        return RunConfig(model=self.models[label], data=self.data, train=train, preset=self.preset)

    def as_dict(self) -> dict[str, Any]:
        """Plain values of comparison.yaml, a valid --config file."""
        train = {
            key: value for key, value in asdict(self.train).items() if f"train.{key}" not in OWN_SETTINGS
        }
        models = {label: asdict(config) for label, config in self.models.items()}
        names = {label: settings.pop("name") for label, settings in models.items()}
        return {
            "preset": self.preset,
            "models": [label if label == name else f"{label}={name}" for label, name in names.items()],
            "seeds": list(self.seeds),
            "model": models,
            "data": asdict(self.data),
            "train": train | {"objective": self.objective},
        }


def parse_args(argv: Sequence[str]) -> Request:
    """Read the command line of `recgrela.compare`.

    Raises:
        ConfigError: A wrong key, value or combination.
    """
    entries, (preset, *files) = read_sources(argv, MODELS)
    names = _names_by_label(entries)
    classes = {f"model.{label}": CONFIGS[name] for label, name in names.items()}
    given = [word[2:].partition("=")[0] for word in argv if word.startswith("--")]
    for prefix, keys in [("--", given), *((f"{file.name}: ", file.values) for file in files)]:
        for key in keys:
            if key in OWN_SETTINGS:
                raise ConfigError(f"{prefix}{key}: each run has its own value; {OWN_SETTINGS[key]}")
    options = _options(classes)
    values = merge(options, [_shared(for_models(preset, classes)), *files])
    parser = Parser("compare", DESCRIPTION, USAGE, EPILOG)
    parser.add([OUT, CONFIG, *options.values()], values)
    values = parser.read(argv)
    if not names:
        raise ConfigError(f"--models: give at least one of {', '.join(CONFIGS)}")
    if values["out"] is None:
        raise ConfigError("--out: give the folder of the comparison")
    models = {}
    for label, (section, kind) in zip(names, classes.items(), strict=True):
        with named_errors(label):
            models[label] = make(kind, values, section)
    objective = values.pop(OBJECTIVE.key)  # not a value of TrainConfig: it may be "auto"
    return Request(
        models=models,
        data=make(DataConfig, values),
        train=make(TrainConfig, values),
        objective=objective,
        seeds=_check_seeds(values["seeds"]),
        preset=values["preset"],
        out=expand_path(values["out"], "--out"),
    )


def _options(classes: Mapping[str, type[ModelConfig]]) -> dict[str, Option]:
    """The options that a file can give, by key; `classes` are the models' settings classes by section."""
    options = {option.key: option for option in (MODELS, SEEDS, PRESET)}
    for section, kind in classes.items():
        options |= options_of(kind, section)
    options |= options_of(DataConfig) | options_of(TrainConfig) | {OBJECTIVE.key: OBJECTIVE}
    fixed = {f"{section}.name" for section in classes} | OWN_SETTINGS.keys()
    return {key: option for key, option in options.items() if key not in fixed}


def _names_by_label(entries: Sequence[str]) -> dict[str, str]:
    """Model names by label. Raises ConfigError for an unknown name, a bad label, or one given twice."""
    names: dict[str, str] = {}
    for entry in entries:
        label, _, name = entry.rpartition("=")
        if name not in CONFIGS:
            raise ConfigError(
                f"models: {name!r} is not one of {', '.join(CONFIGS)}{near_miss(name, CONFIGS)}"
            )
        label = label or name
        if label in TRIVIAL_MODELS:
            raise ConfigError(f"models: {label!r} is a row of every table; give the model another label")
        if not re.fullmatch(r"[A-Za-z]\w*", label):
            raise ConfigError(
                f"models: {entry!r}: a label consists of letters, digits and _, and begins with a letter"
            )
        if label in names:
            raise ConfigError(f"models: {label!r} is given twice; give one a label: LABEL={name}")
        names[label] = name
    return names


def _shared(preset: Source) -> Source:
    """The values of a preset that all runs of a comparison can share."""
    values = {key: value for key, value in preset.values.items() if key not in OWN_SETTINGS}
    if values.get(OBJECTIVE.key) == "all":  # not every model supports it
        values[OBJECTIVE.key] = "auto"
    return Source(preset.name, values)


def _check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    for index, seed in enumerate(seeds):
        if seed in seeds[:index]:
            raise ConfigError(f"seeds: {seed} is given twice; repeating a seed adds no information")
    return tuple(seeds)
