"""Settings of a run: its model, data and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recgrela.settings.command_line import Parser, peek
from recgrela.settings.data import DataConfig
from recgrela.settings.fields import Option, options_of
from recgrela.settings.merge import (
    CONFIG,
    PRESET,
    Source,
    for_models,
    last_value,
    make,
    merge,
    named_errors,
    read_file,
    read_preset,
    read_sources,
)
from recgrela.settings.model import ModelConfig
from recgrela.settings.train import TrainConfig
from recgrela.settings.yaml import flatten
from recgrela.system.errors import ConfigError

RESUME = Option("resume", None, "Run folder to resume; its settings are kept.")
INIT = Option("init", None, "Run folder whose weights and model settings a new run begins from.")
INIT_ITEMS = Option(
    "init_items",
    "model",
    "First rows of items that the run of --init does not have: drawn by the model as without --init, the "
    "mean row, or the mean of rows of items with similar titles.",
    choices=("model", "mean", "titles"),
)

Models = Mapping[str, type[ModelConfig]]

# On a CPU, the tensors of a pass of this size fit into the caches and reuse the process's memory. A whole
# published batch (409,600 slots) would spend its time on page faults. A GPU takes whole batches.
DEFAULT_MAX_TOKENS = {"cpu": 16_384, "cuda": 1 << 62}


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run; `model` is an instance of the model's own `ModelConfig` class."""

    model: Any  # a subclass of ModelConfig, whose own fields its model reads
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    preset: str = PRESET.default

    @property
    def options(self) -> dict[str, Option]:
        """All settings as options, by dotted key."""
        return _options(type(self.model))

    def resumable(self) -> set[str]:
        """Dotted keys of the settings that a resumed run may change."""
        return {key for key, option in self.options.items() if option.affects.resumable}

    def max_tokens(self, device_type: str) -> int:
        """Maximum number of item slots in one pass over the model."""
        return self.train.max_tokens or DEFAULT_MAX_TOKENS[device_type]

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as in a configuration file."""
        sections = {name: asdict(getattr(self, name)) for name in ("model", "data", "train")}
        return {"preset": self.preset, **sections}

    def flat(self) -> dict[str, Any]:
        """Plain values by dotted key, such as "train.lr"."""
        return flatten(self.as_dict())

    def to_yaml(self) -> str:
        """The text of the run folder's config.yaml, a valid --config file."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False)


def read_run(argv: Sequence[str], models: Models, parent: Path | None = None) -> RunConfig:
    """The settings of a new run.

    Args:
        argv: Options of `recgrela.train`.
        models: Settings classes by the models' names; the first is the default.
        parent: The config.yaml of the run of --init. Its model settings override those of the preset.

    Raises:
        ConfigError: A wrong key, value or combination.
    """
    parents = [] if parent is None else [_model_settings(parent)]
    name, (preset, *files) = read_sources(argv, _name_option(models), parents)
    for source in parents:
        if name != source.values["model.name"]:
            raise ConfigError(f"model.name: {name}, but --init is a run of {source.values['model.name']}")
    sources = [for_models(preset, {"model": models[name]}), *files]
    return _read_options(argv, models[name], merge(_options(models[name]), sources), models)


def find_resumed(argv: Sequence[str]) -> str | None:
    """The run folder of --resume, None without the option."""
    return peek(argv, [RESUME]).get("resume")


def find_init(argv: Sequence[str]) -> tuple[str, Any] | None:
    """The values of --init and --init_items, None without --init.

    Raises:
        ConfigError: --init_items is no choice or is given alone, or --resume is given too.
    """
    given = peek(argv, [INIT, INIT_ITEMS, RESUME])
    if "init" not in given:
        if "init_items" in given:
            raise ConfigError("--init_items: needs --init, the run whose weights a new run begins from")
        return None
    if "resume" in given:
        raise ConfigError("--init cannot be given with --resume: a resumed run has its own weights")
    return given["init"], INIT_ITEMS.read(given.get("init_items", INIT_ITEMS.default))


def read_resumed(argv: Sequence[str], before: RunConfig) -> RunConfig:
    """The settings of a resumed run.

    Args:
        argv: Options of `recgrela.train`, --resume among them.
        before: The settings of the run so far.

    Raises:
        ConfigError: A wrong key, value or combination, or a setting that a resumed run may not change.
    """
    for key in peek(argv, [PRESET, CONFIG]):
        raise ConfigError(f"--{key} cannot be given with --resume: a resumed run keeps its own settings")
    model = type(before.model)
    after = _read_options(argv, model, before.flat(), {model.name: model})
    check_resumed(before, after)
    return after


def check_resumed(before: RunConfig, after: RunConfig) -> None:
    """Raises ConfigError if a resumed run may not change its settings in this way.

    Args:
        before: The settings of the run so far.
        after: The settings with which it resumes.
    """
    old, free = before.flat(), before.resumable()
    for key, value in after.flat().items():
        if value != old[key] and key not in free:
            raise ConfigError(
                f"--{key}: a resumed run keeps its settings (here {old[key]!r}); only "
                f"{', '.join(sorted(free))} may change"
            )


def read_config(path: Path, models: Models) -> RunConfig:
    """The settings in a file that has all of them, such as a run folder's config.yaml.

    Raises:
        ConfigError: A wrong key, value or combination; the message names the file.
    """
    source = read_file(path)
    model = models[last_value(_name_option(models), [source])]
    values = merge(_options(model), [source])
    with named_errors(source.name):
        return _make_run(model, values)


def preset_config(preset: str, model: type[ModelConfig]) -> RunConfig:
    """The settings of a model under a preset alone. Raises ConfigError for an unknown preset."""
    values = merge(_options(model), [for_models(read_preset(preset), {"model": model})])
    return _make_run(model, values | {"preset": preset})


def _model_settings(path: Path) -> Source:
    """The model settings in the config.yaml of a run. Raises ConfigError if the file has no model."""
    source = read_file(path)
    values = {key: value for key, value in source.values.items() if key.startswith("model.")}
    if "model.name" not in values:
        raise ConfigError(f"{path}: damaged: model.name is missing")
    return Source(source.name, values)


def _name_option(models: Models) -> Option:
    return Option("model.name", next(iter(models)), "Name of the model.", choices=tuple(models))


def _options(model: type[ModelConfig]) -> dict[str, Option]:
    return {"preset": PRESET} | options_of(model) | options_of(DataConfig) | options_of(TrainConfig)


def _read_options(
    argv: Sequence[str], model: type[ModelConfig], values: Mapping[str, Any], models: Models
) -> RunConfig:
    """The settings on the command line, which override `values`; --help lists `models`."""
    parser = Parser(
        "train",
        "Train a sequential recommender, evaluate it and write a run folder.",
        usage="%(prog)s [--preset PRESET] [--config CONFIG] [--SECTION.KEY VALUE ...]",
        epilog="The command line overrides --config files, a later file overrides earlier ones, and files "
        "override the preset. --help shows the defaults under the given preset and files.",
    )
    commands = {option.key: option for option in (PRESET, CONFIG, RESUME, INIT, INIT_ITEMS)}
    options = commands | _options(model)
    parser.add((options | {"model.name": _name_option(models)}).values(), values)
    return _make_run(model, parser.read(argv))


def _make_run(model: type[ModelConfig], values: Mapping[str, Any]) -> RunConfig:
    data, train = make(DataConfig, values), make(TrainConfig, values)
    return RunConfig(make(model, values), data, train, values["preset"])
