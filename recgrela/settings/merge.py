"""Merges settings: default < preset < configuration files < command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from recgrela.settings.command_line import peek
from recgrela.settings.fields import Option, Settings, check_known, options_of
from recgrela.settings.model import ModelConfig
from recgrela.settings.yaml import flatten, read_yaml
from recgrela.system.errors import ConfigError
from recgrela.system.files import expand_path
from recgrela.system.text import quote

S = TypeVar("S", bound=Settings)

PRESETS = ("causal", "paper")
PRESETS_FOLDER = Path(__file__).parent / "presets"
PRESET = Option("preset", "causal", "Named settings to start from.", choices=PRESETS)
CONFIG = Option("config", None, "YAML file of settings; repeat it for several files.", many="append")


class Source(NamedTuple):
    """The values from one file or from the command line.

    Attributes:
        name: Path of the file; "" for the command line.
        values: Plain values by dotted key.
    """

    name: str
    values: Mapping[str, Any]


def read_file(path: Path) -> Source:
    """A configuration file. Raises ConfigError if it cannot be read."""
    return Source(str(path), flatten(read_yaml(path)))


def read_preset(name: str) -> Source:
    """A preset. Raises ConfigError for an unknown name."""
    return read_file(PRESETS_FOLDER / f"{PRESET.check(name)}.yaml")


def read_sources(
    argv: Sequence[str], selector: Option, parents: Sequence[Source] = ()
) -> tuple[Any, list[Source]]:
    """The value of an option that determines which other options exist, and the preset and files of `argv`.

    Args:
        argv: Words of the command line.
        selector: The option.
        parents: Sources that override the preset and that files override; they are returned in this place.

    Raises:
        ConfigError: A file cannot be read, or the preset or the value of `selector` is not a choice.
    """
    given = Source("", peek(argv, [PRESET, CONFIG, selector]))
    files = [read_file(expand_path(path, "--config")) for path in given.values.get("config", [])]
    preset = read_preset(last_value(PRESET, [*files, given]))
    return last_value(selector, [preset, *parents, *files, given]), [preset, *parents, *files]


def last_value(option: Option, sources: Sequence[Source]) -> Any:
    """The value from the last source that gives one, else the default. Raises ConfigError if it is wrong."""
    for source in reversed(sources):
        if (value := source.values.get(option.key)) is not None:
            with named_errors(source.name):
                return option.check(value)
    return option.default


def for_models(preset: Source, models: Mapping[str, type[ModelConfig]]) -> Source:
    """A preset whose model settings apply only to the model that it names.

    Args:
        preset: The preset.
        models: Settings classes by section, such as "model".
    """
    values = {}
    for key, value in preset.values.items():
        section, _, name = key.partition(".")
        if section != "model":
            values[key] = value
        elif name != "name":
            named = [at for at, kind in models.items() if kind.name == preset.values["model.name"]]
            values |= {f"{at}.{name}": value for at in named}
    return Source(preset.name, values)


def merge(options: Mapping[str, Option], sources: Iterable[Source]) -> dict[str, Any]:
    """Typed values by dotted key: the defaults, overridden by each source in turn.

    Raises:
        ConfigError: An unknown key or a wrong value; the message names the source.
    """
    sections = {key[:end] for key in options for end, letter in enumerate(key) if letter == "."}
    merged = {key: option.default for key, option in options.items()}
    for name, values in sources:
        with named_errors(name):
            for key, value in values.items():
                if key not in sections:
                    check_known([key], options, "unknown key")
                    merged[key] = options[key].read(value)
                elif value is not None and value != {}:
                    raise ConfigError(f"{key}: expected a section with keys, not {quote(value)}")
    return merged


def make(kind: type[S], values: Mapping[str, Any], section: str | None = None) -> S:
    """An instance of a settings class from values by dotted key. Raises ConfigError."""
    return kind(**{key.rpartition(".")[2]: values[key] for key in options_of(kind, section) if key in values})


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Prefixes a ConfigError with a name, unless the name is empty."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}" if name else str(error)) from error
