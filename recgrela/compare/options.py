"""Reads what is to be compared: defaults < preset < configuration file < command line, as for training."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jsonargparse import ArgumentParser

from recgrela.data import DataConfig
from recgrela.models import MODELS
from recgrela.settings import cli
from recgrela.settings.config import DEFAULT_PRESET, Objective, RunConfig, TrainConfig, flatten
from recgrela.settings.options import PRESETS, read_preset, read_yaml, to_options
from recgrela.system.errors import ConfigError
from recgrela.system.files import given_path
from recgrela.system.suggest import near_miss

AskedObjective = Literal["auto", "last", "all"]

DESCRIPTION = """Train several models on the same data, split, seeds and training settings, and write one
table: ranking quality with intervals and tests, time, memory, operations. A model's own settings are
--model.LABEL.KEY; with --models given, --help lists them. Every run is a run folder of recgrela.train below
OUT/runs. The same command again goes on where it was stopped, and repeats nothing that is finished."""


@dataclass(frozen=True)
class Request:
    """What is to be compared.

    Attributes:
        models: the settings of each model, by its label, in the order of the table.
        data, train: what all of them share; of `train` the seed, objective, output and name are each run's.
        objective: as asked; "auto" is "all" for a model that trains on every position, else "last".
        seeds: of the runs of each model.
        preset: the named settings that the others changed.
        out: the comparison's folder.
    """

    models: dict[str, Any]
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
        """Plain values: comparison.yaml, itself a valid --config file."""
        train = {key: value for key, value in asdict(self.train).items() if key not in OF_A_RUN}
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


# Settings of training that each run has for itself, and what there is in their place.
OF_A_RUN = {
    "seed": "give --seeds",
    "output": "give --out",
    "name": "a run's name is its seed",
}


def parse_args(argv: Sequence[str]) -> Request:
    """Read the command line of `recgrela.compare`.

    Raises:
        ConfigError: a wrong key, value or combination, in one line.
    """
    given = _first_look(argv)
    layers = [_read_layer(path) for path in given.config]
    presets = [given.preset, *(layer.sections.get("preset") for layer in reversed(layers)), DEFAULT_PRESET]
    preset = next(name for name in presets if name is not None)
    base = read_preset(preset)
    lists = [given.models, *(layer.models for layer in reversed(layers)), []]
    names = _models_of(next(models for models in lists if models is not None))
    parser = make_parser(names)
    types_of: dict[str, object] = {"preset": str, "train.objective": AskedObjective, "seeds": int}
    shared = {"data": DataConfig, "train": TrainConfig}
    classes = {f"model.{label}": MODELS[name].config for label, name in names.items()}
    for prefix, kind in (shared | classes).items():
        types_of = cli.dataclass_types(kind, prefix) | types_of
    known = {key: kind for key, kind in types_of.items() if key in cli.known_options(parser)}
    options = to_options(_of_preset(base, names), "", known)
    _refuse_settings_of_a_run(cli.option_names(argv), "--")
    for layer in layers:
        _refuse_settings_of_a_run(flatten(layer.sections), f"{layer.path}: ")
        from_file = to_options(layer.sections, layer.path, known)
        cli.parse(parser, from_file, known, layer.path)
        options += [*from_file, *(["--seeds", *layer.seeds] if layer.seeds is not None else [])]
    parsed = cli.parse(parser, [*options, *argv], known)
    if not names:
        raise ConfigError(f"--models: name at least one of {', '.join(MODELS)}")
    if parsed.out is None:
        raise ConfigError("--out: name the folder of the comparison")
    train = {key: value for key, value in vars(parsed.train).items() if key != "objective"}
    return Request(
        models={label: _model_config(label, name, parsed.model[label]) for label, name in names.items()},
        data=DataConfig(**vars(parsed.data)),
        train=TrainConfig(**train),
        objective=parsed.train.objective,
        seeds=_check_seeds(parsed.seeds),
        preset=preset,
        out=given_path(parsed.out, "--out"),
    )


def make_parser(names: Mapping[str, str]) -> ArgumentParser:
    """The options, with the settings of these models (names by label)."""
    parser = cli.make_parser("compare", DESCRIPTION)
    parser.add_argument(
        "--models",
        nargs="+",
        type=str,
        default=[],
        metavar="MODEL",
        help=f"Models, the first being what the others are tested against: NAME, or LABEL=NAME for one in "
        f"settings of its own under another label. There are: {', '.join(MODELS)}.",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[2020], help="One run of each model a seed.")
    parser.add_argument("--out", type=str | None, default=None, help="Folder of the comparison.")
    parser.add_argument(
        "--preset",
        default=DEFAULT_PRESET,
        help=f"Named settings of data and training, and of RecGRELA: {', '.join(PRESETS)}.",
    )
    parser.add_argument(
        "--config",
        default=None,
        help="YAML file with the sections model (by label), data and train, and the lists models and seeds.",
    )
    for label, name in names.items():
        parser.add_class_arguments(MODELS[name].config, f"model.{label}", skip={"name"})
    parser.add_class_arguments(DataConfig, "data")
    parser.add_class_arguments(TrainConfig, "train", skip={"objective", *OF_A_RUN})
    parser.add_argument(
        "--train.objective",
        type=AskedObjective,
        default="auto",
        help="What a step learns: all (every position of a window), last (one target per prefix), or auto: "
        "all for the models that can, else last. The preset paper has last.",
    )
    return parser


class _Layer(NamedTuple):
    """A configuration file: its sections, and its lists where it has them."""

    path: str
    sections: dict[str, Any]
    models: list[str] | None
    seeds: list[str] | None


def _first_look(argv: Sequence[str]) -> argparse.Namespace:
    """What decides which other options there are."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset")
    first.add_argument("--config", action="append", default=[])
    first.add_argument("--models", nargs="+")
    first.add_argument("--seeds", nargs="+")
    try:
        return first.parse_known_args(list(argv))[0]
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error.argument_name} needs a value") from error


def _read_layer(path: str) -> _Layer:
    """A configuration file. Raises ConfigError where models or seeds are not lists of names and numbers."""
    content = read_yaml(given_path(path, "--config"))
    lists: dict[str, list[str] | None] = {}
    for key, kind, what in (("models", str, "names"), ("seeds", int, "whole numbers")):
        values = content.pop(key, None)
        is_list = isinstance(values, list) and all(type(value) is kind for value in values)
        if values is not None and not (is_list and values):
            raise ConfigError(f"{path}: {key}: {values!r} is not a list of {what}")
        lists[key] = None if values is None else [str(value) for value in values]
    return _Layer(path, content, lists["models"], lists["seeds"])


def _models_of(entries: Sequence[str]) -> dict[str, str]:
    """Model names by label. Raises ConfigError for an unknown name, a bad label, or one given twice."""
    names: dict[str, str] = {}
    for entry in entries:
        label, _, name = entry.rpartition("=")
        if name not in MODELS:
            raise ConfigError(
                f"--models: {name!r} is not one of {', '.join(MODELS)}{near_miss(name, MODELS)}"
            )
        label = label or name
        if not re.fullmatch(r"[A-Za-z]\w*", label):
            raise ConfigError(f"--models: {entry!r}: a label is letters, digits and _, a letter first")
        if label in names:
            raise ConfigError(f"--models: {label!r} comes twice; give one a label: LABEL={name}")
        names[label] = name
    return names


def _refuse_settings_of_a_run(keys: Iterable[str], prefix: str) -> None:
    """Raises ConfigError for a setting that `OF_A_RUN` has another way for."""
    for key in keys:
        section, _, name = key.partition(".")
        if section == "train" and name in OF_A_RUN:
            raise ConfigError(f"{prefix}{key}: the runs of a comparison have their own; {OF_A_RUN[name]}")


def _of_preset(preset: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A preset's settings for these models."""
    settings = dict(preset["model"])
    of = settings.pop("name")
    train = dict(preset["train"])
    train.pop("seed", None)
    if train["objective"] == "all":  # not every model can
        train["objective"] = "auto"
    models = {label: settings for label, name in names.items() if name == of}
    return {"data": preset["data"], "train": train} | ({"model": models} if models else {})


def _model_config(label: str, name: str, settings: Any) -> Any:
    try:
        return MODELS[name].config(**vars(settings))
    except ConfigError as error:
        raise ConfigError(f"{label}: {error}") from error


def _check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    for index, seed in enumerate(seeds):
        cli.check_range("--seeds", seed, 0, 2**64 - 1)
        if seed in seeds[:index]:
            raise ConfigError(f"--seeds: {seed} comes twice; the same run twice is no second sample")
    return tuple(seeds)
