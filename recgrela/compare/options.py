"""Reads the settings of a comparison: defaults < preset < configuration files < command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from recgrela.models import CONFIGS
from recgrela.settings.command_line import Parser, peek
from recgrela.settings.data import DataConfig
from recgrela.settings.fields import MAX_SEED, Option, options_of
from recgrela.settings.merge import CONFIG, PRESET, Source, last, make, merge, named_errors, read_sources
from recgrela.settings.model import ModelConfig
from recgrela.settings.run import RunConfig
from recgrela.settings.train import Objective, TrainConfig
from recgrela.system.errors import ConfigError
from recgrela.system.files import given_path
from recgrela.system.suggest import near_miss

AskedObjective = Literal["auto", "last", "all"]

MODELS = Option(
    "models",
    list[str],
    [],
    "Models to compare; the others are tested against the first. Each is NAME, or LABEL=NAME to compare a "
    f"model with itself under other settings. Names: {', '.join(CONFIGS)}.",
)
SEEDS = Option("seeds", list[int], [2020], "Seeds; each model is trained once per seed.", min=0, max=MAX_SEED)
OUT = Option("out", str, None, "Folder of the comparison.")
OBJECTIVE = Option(
    "train.objective",
    AskedObjective,
    "auto",
    "Targets of a step: last is one target per prefix of a history, all is every position of a window, auto "
    "is all for the models that can, else last.",
)

# Settings that each run of a comparison has for itself, and what to give instead.
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
        preset: Named settings that the others changed.
        out: Folder of the comparison.
    """

    models: dict[str, ModelConfig]
    data: DataConfig
    train: TrainConfig
    objective: AskedObjective
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
    given = peek(argv, [PRESET, CONFIG, MODELS])
    preset, *files = read_sources(given)
    names = _names_by_label(last(MODELS, [*files, Source("", given)]))
    classes = {f"model.{label}": CONFIGS[name] for label, name in names.items()}
    options = _options(classes)
    _refuse_own_settings([word[2:].partition("=")[0] for word in argv if word.startswith("--")], "--")
    for file in files:
        _refuse_own_settings(file.values, f"{file.name}: ")
    values = merge(options, [_shared(preset.of_models(classes)), *files])
    values = _make_parser(classes, options, values).read(argv)
    if not names:
        raise ConfigError(f"--models: name at least one of {', '.join(CONFIGS)}")
    if values["out"] is None:
        raise ConfigError("--out: name the folder of the comparison")
    models = {}
    for label, (section, kind) in zip(names, classes.items(), strict=True):
        with named_errors(label):
            models[label] = make(kind, values, section)
    shared = {key: value for key, value in values.items() if key != OBJECTIVE.key}
    return Request(
        models=models,
        data=make(DataConfig, shared),
        train=make(TrainConfig, shared),
        objective=values[OBJECTIVE.key],
        seeds=_check_seeds(values["seeds"]),
        preset=values["preset"],
        out=given_path(values["out"], "--out"),
    )


def _options(classes: Mapping[str, type[ModelConfig]]) -> dict[str, Option]:
    """The options that a file can give, by key; `classes` are the models' by section."""
    options = {option.key: option for option in (PRESET, MODELS, SEEDS)}
    for section, kind in classes.items():
        options |= options_of(kind, section)
    options |= options_of(DataConfig) | options_of(TrainConfig) | {OBJECTIVE.key: OBJECTIVE}
    fixed = {f"{section}.name" for section in classes} | OWN_SETTINGS.keys()
    return {key: option for key, option in options.items() if key not in fixed}


def _make_parser(
    classes: Mapping[str, type[ModelConfig]], options: Mapping[str, Option], values: Mapping[str, Any]
) -> Parser:
    parser = Parser(
        "compare",
        "Train several models on the same data, split, seeds and training settings, and write one table: "
        "ranking quality with intervals and tests, time, memory, operations. Each run is a run folder of "
        "recgrela.train in OUT/runs. The same command again resumes a comparison that was stopped.",
        usage="%(prog)s --models MODEL ... --out OUT [--SECTION.KEY VALUE ...]",
        epilog="The settings of a model are --model.LABEL.KEY; --help lists them for the models of --models.",
    )
    parser.add([MODELS, SEEDS, PRESET], values)
    parser.add([OUT, CONFIG])
    titles = {section: f"{section} ({kind.name})" for section, kind in classes.items()}
    for section, title in (titles | {"data": "data", "train": "training"}).items():
        parser.add(
            [option for key, option in options.items() if key.startswith(f"{section}.")], values, title
        )
    return parser


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
        if not re.fullmatch(r"[A-Za-z]\w*", label):
            raise ConfigError(f"models: {entry!r}: a label is letters, digits and _, a letter first")
        if label in names:
            raise ConfigError(f"models: {label!r} is given twice; give one a label: LABEL={name}")
        names[label] = name
    return names


def _refuse_own_settings(keys: Iterable[str], prefix: str) -> None:
    """Raises ConfigError for a key in `OWN_SETTINGS`."""
    for key in keys:
        if key in OWN_SETTINGS:
            raise ConfigError(f"{prefix}{key}: the runs of a comparison have their own; {OWN_SETTINGS[key]}")


def _shared(preset: Source) -> Source:
    """The values of a preset that all runs of a comparison can share."""
    values = {key: value for key, value in preset.values.items() if key not in OWN_SETTINGS}
    if values[OBJECTIVE.key] == "all":  # not every model can
        values[OBJECTIVE.key] = "auto"
    return Source(preset.name, values)


def _check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    for index, seed in enumerate(seeds):
        if seed in seeds[:index]:
            raise ConfigError(f"seeds: {seed} is given twice; repeating a seed adds no information")
    return tuple(seeds)
