"""Reads a run's settings: defaults < preset < configuration file < command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser

from recgrela.data import DataConfig
from recgrela.models import MODELS
from recgrela.runs.folder import RunFolder
from recgrela.settings import cli
from recgrela.settings.config import DEFAULT_PRESET, RunConfig, TrainConfig, flatten, resumable
from recgrela.system.errors import ConfigError
from recgrela.system.files import given_path
from recgrela.system.suggest import near_file, near_miss

PRESETS = ("causal", "paper")


class Request(NamedTuple):
    """What a command line asks for: a configuration, and the run folder to go on with, if any."""

    config: RunConfig
    resume: Path | None


def parse_args(argv: Sequence[str]) -> Request:
    """Read the command line of `recgrela.train`.

    Raises:
        ConfigError: a wrong key, value or combination, in one line.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset")
    first.add_argument("--config", action="append", default=[])
    first.add_argument("--resume")
    first.add_argument("--model.name", dest="model_name")
    try:
        given, _ = first.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error.argument_name} needs a value") from error
    if given.resume is not None:
        return _parse_resume(argv, given)
    layers = [(path, read_yaml(given_path(path, "--config"))) for path in given.config]
    named = [given.preset, *(content.get("preset") for _, content in reversed(layers)), DEFAULT_PRESET]
    preset = next(name for name in named if name is not None)
    base = read_preset(preset)
    return Request(_parse_layers(argv, preset, base, layers, given.model_name), None)


def preset_config(name: str, model_name: str) -> RunConfig:
    """What a preset alone gives for a model. Raises ConfigError for an unknown name."""
    return _parse_layers([], name, read_preset(name), [], model_name)


def load_config(path: Path) -> RunConfig:
    """The configuration in a file that holds all of it, such as a run folder's config.yaml.

    Raises:
        ConfigError: a wrong key, value or combination.
    """
    content = read_yaml(path)
    return _parse_layers([], str(content.get("preset", DEFAULT_PRESET)), {}, [(str(path), content)], None)


def read_preset(name: str) -> dict[str, Any]:
    """The sections of a preset. Raises ConfigError for an unknown name."""
    if name not in PRESETS:
        hint = near_miss(str(name), PRESETS)
        raise ConfigError(f"preset {name!r} is not one of {', '.join(PRESETS)}{hint}")
    return yaml.safe_load(
        (resources.files("recgrela.settings") / "presets" / f"{name}.yaml").read_text("utf-8")
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration file as nested dictionaries. Raises ConfigError if it is missing or not that."""
    try:
        content = yaml.load(path.read_text("utf-8"), _Loader)  # a SafeLoader
        _check_ends(content)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file{near_file(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ConfigError(f"{path}: {where}not YAML: {problem or error}") from error
    except ValueError as error:  # such as a date in month 13
        raise ConfigError(f"{path}: not YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested without end") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path}: expected the sections model, data and train")
    return content


class _Loader(yaml.SafeLoader):
    """YAML of plain values, in which a key that occurs twice is an error, not the last one's."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value!r} occurs twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check_ends(content: object) -> None:
    """Raises RecursionError where an alias is inside what it stands for."""
    parts = content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ()
    for part in parts:
        _check_ends(part)


def make_parser(model_name: str) -> ArgumentParser:
    """The options of `recgrela.train` for one model."""
    parser = cli.make_parser("train", "Train a sequential recommender, evaluate it and leave a run folder.")
    parser.add_argument("--preset", help=f"Named settings: {', '.join(PRESETS)}.", default=DEFAULT_PRESET)
    parser.add_argument("--config", help="YAML file with the sections model, data and train.", default=None)
    parser.add_argument("--resume", help="Run folder to go on with, bit for bit.", default=None)
    parser.add_class_arguments(MODELS[model_name].config, "model")
    parser.add_class_arguments(DataConfig, "data")
    parser.add_class_arguments(TrainConfig, "train")
    return parser


def _parse_layers(
    argv: Sequence[str],
    preset: str,
    base: dict[str, Any],
    layers: Sequence[tuple[str, dict[str, Any]]],
    model_name: str | None,
) -> RunConfig:
    """Parse preset, files and command line, in this order; files also alone, so that errors name them."""
    sections = [content.get("model") for content in (base, *(content for _, content in layers))]
    names = [section.get("name") for section in sections if isinstance(section, Mapping)]
    name = next((name for name in (model_name, *reversed(names)) if name is not None), next(iter(MODELS)))
    if not isinstance(name, str) or name not in MODELS:
        hint = near_miss(str(name), MODELS)
        raise ConfigError(f"model.name: {name!r} is not one of {', '.join(MODELS)}{hint}")
    model_class = MODELS[name].config
    if base and base["model"]["name"] != name:
        base = base | {"model": {"name": name}}  # the preset's model settings are of another model
    parser = make_parser(name)
    types_of: dict[str, object] = {"preset": str}
    for prefix, kind in (("model", model_class), ("data", DataConfig), ("train", TrainConfig)):
        types_of |= cli.dataclass_types(kind, prefix)
    options = to_options(base, "", types_of)
    for source, content in layers:
        from_file = to_options(content, source, types_of)
        cli.parse(parser, from_file, types_of, source)
        options += from_file
    parsed = cli.parse(parser, [*options, *argv], types_of)
    return RunConfig(
        model=model_class(**vars(parsed.model)),
        data=DataConfig(**vars(parsed.data)),
        train=TrainConfig(**vars(parsed.train)),
        preset=preset,
    )


def _parse_resume(argv: Sequence[str], given: argparse.Namespace) -> Request:
    """The run's own configuration with the few settings that may change.

    Raises:
        ConfigError: another setting would change.
    """
    for option, value in (("--preset", given.preset), ("--config", given.config)):
        if value:
            raise ConfigError(f"{option} does not go with --resume: a resumed run keeps its own settings")
    folder = RunFolder.open(given_path(given.resume, "--resume"))
    before = load_config(folder.config_path)
    content = before.as_dict()
    after = _parse_layers(argv, before.preset, {}, [(str(folder.config_path), content)], None)
    old, new = before.flat(), after.flat()
    free = resumable(before.train)
    for key, value in new.items():
        if value != old[key] and key not in free:
            raise ConfigError(
                f"--{key}: a resumed run keeps its settings (here {old[key]!r}); only "
                f"{', '.join(sorted(free))} may change"
            )
    return Request(after, folder.path)


def to_options(content: Mapping[str, Any], source: str, types_of: Mapping[str, object]) -> list[str]:
    """Nested settings as command-line options. Raises ConfigError, naming `source`, for an unknown key."""
    for section in ("model", "data", "train"):
        if section in content and content[section] is not None and not isinstance(content[section], Mapping):
            raise ConfigError(f"{source}: {section}: expected a section with keys, not {content[section]!r}")
    flat = {key: value for key, value in flatten(content).items() if key not in ("model", "data", "train")}
    cli.check_names(list(flat), list(types_of), f"{source}: ")
    for key, value in flat.items():
        if isinstance(value, Mapping | list | set):
            raise ConfigError(f"{source}: {key}: expected one value, not {value!r}")
    return [
        f"--{key}={value if isinstance(value, str) else json.dumps(value, default=str)}"
        for key, value in flat.items()
    ]
