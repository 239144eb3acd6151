"""Merges settings: default < preset < configuration files < command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from recgrela.settings.fields import Option, Settings, check_known, options_of
from recgrela.settings.model import ModelConfig
from recgrela.settings.yaml import flatten, read_yaml
from recgrela.system.errors import ConfigError
from recgrela.system.files import given_path

S = TypeVar("S", bound=Settings)

PRESETS_FOLDER = Path(__file__).parent / "presets"
PRESET = Option("preset", Literal["causal", "paper"], "causal", "Named settings that the others change.")
PRESETS = PRESET.choices
CONFIG = Option("config", list[str], None, "YAML file of settings. May be given several times.", repeats=True)


@contextmanager
def named_errors(source: str) -> Iterator[None]:
    """Puts the name of a file or of a model, if not empty, in front of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}" if source else str(error)) from error


@dataclass(frozen=True)
class Source:
    """What a file or a command line gives.

    Attributes:
        name: Path of the file; "" for a command line.
        values: Plain values by dotted key.
    """

    name: str
    values: Mapping[str, Any]

    @classmethod
    def of_file(cls, path: Path) -> Source:
        """A configuration file. Raises ConfigError if it cannot be read."""
        return cls(str(path), flatten(read_yaml(path)))

    @classmethod
    def of_preset(cls, name: str) -> Source:
        """A preset. Raises ConfigError for an unknown name."""
        return cls.of_file(PRESETS_FOLDER / f"{PRESET.check(name)}.yaml")

    def of_models(self, models: Mapping[str, type[ModelConfig]]) -> Source:
        """A preset's values for the models that it is for; those of other models keep their defaults.

        Args:
            models: Classes by section, such as "model".
        """
        own = {
            key.removeprefix("model."): value
            for key, value in self.values.items()
            if key.startswith("model.")
        }
        name = own.pop("name")
        values = {key: value for key, value in self.values.items() if not key.startswith("model.")}
        for section, kind in models.items():
            if kind.name == name:
                values |= {f"{section}.{key}": value for key, value in own.items()}
        return Source(self.name, values)

    def read(self, options: Mapping[str, Option]) -> dict[str, Any]:
        """Typed values by dotted key.

        Raises:
            ConfigError: An unknown key or a wrong value; the message names the file.
        """
        sections = {key[:end] for key in options for end, letter in enumerate(key) if letter == "."}
        typed = {}
        with named_errors(self.name):
            for key, value in self.values.items():
                if key not in sections:
                    check_known([key], options, "unknown key")
                    typed[key] = options[key].from_plain(value)
                elif value is not None and value != {}:
                    raise ConfigError(f"{key}: expected a section with keys, not {value!r}")
        return typed


def read_sources(given: Mapping[str, Any]) -> list[Source]:
    """The sources below the command line: the preset, and the files of --config in their order.

    Args:
        given: Words of the command line for `PRESET` and `CONFIG`, by key.

    Raises:
        ConfigError: A file cannot be read, or there is no such preset.
    """
    files = [Source.of_file(given_path(path, "--config")) for path in given.get("config", [])]
    return [Source.of_preset(last(PRESET, [*files, Source("", given)])), *files]


def last(option: Option, sources: Sequence[Source]) -> Any:
    """The value of the last source that has one, else the default. Raises ConfigError for a wrong value."""
    for source in reversed(sources):
        if (value := source.values.get(option.key)) is not None:
            with named_errors(source.name):
                return option.check(value)
    return option.default


def merge(options: Mapping[str, Option], sources: Iterable[Source]) -> dict[str, Any]:
    """Values by dotted key: defaults, and over them each source in its order.

    Raises:
        ConfigError: An unknown key or a wrong value in a source.
    """
    values = {key: option.default for key, option in options.items()}
    for source in sources:
        values |= source.read(options)
    return values


def make(kind: type[S], values: Mapping[str, Any], section: str | None = None) -> S:
    """An instance of a settings class from values by dotted key. Raises ConfigError."""
    return kind(**{key.rpartition(".")[2]: values[key] for key in options_of(kind, section) if key in values})
