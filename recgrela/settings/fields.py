"""Typed settings: what a field carries besides its type, and the one check of a value."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from recgrela.system.errors import ConfigError
from recgrela.system.suggest import near_miss

T = TypeVar("T")

MAX_COUNT = 2**31 - 1
MAX_SEED = 2**64 - 1
MAX_THREADS = 1024

ALIASES = {"learning_rate": "lr", "num_epochs": "epochs", "max_epochs": "epochs"}  # names in other projects
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NULLS = ("null", "~")
# The name of a type in errors, alone and in a list.
NAMES: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "truth values"),
    str: ("text", "names"),
    type(None): ("null", ""),
}


class Effect(NamedTuple):
    """What a change of a setting affects.

    Attributes:
        results: The numbers of a run; protocol.json reports the setting where it differs from the preset.
        comparison: What a comparison measures, time and memory included; all its runs share the value.
        resumable: Whether a resumed run may change it.
    """

    results: bool
    comparison: bool
    resumable: bool


RESULTS = Effect(results=True, comparison=True, resumable=False)
LENGTH = Effect(results=True, comparison=True, resumable=True)  # when training stops
SPEED = Effect(results=False, comparison=True, resumable=True)
NOTHING = Effect(results=False, comparison=False, resumable=True)
PLACE = Effect(results=False, comparison=False, resumable=False)  # where the run folder is


def setting(
    default: T,
    help: str,
    *,
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    below: float | None = None,
    affects: Effect = RESULTS,
) -> T:
    """A field of a `Settings` class.

    Args:
        default: Value of the field where no other is given.
        help: Text shown by --help.
        min, max: Inclusive limits.
        above, below: Exclusive limits.
        affects: What a change of the value affects.
    """
    limits = {"min": min, "max": max, "above": above, "below": below}
    return field(default=default, metadata={"help": help, "affects": affects, **limits})


@dataclass(frozen=True)
class Option:
    """A value that users give, by its dotted key: a field of a `Settings` class, or an option of a command.

    Attributes:
        key: Dotted key, such as "train.lr".
        kind: bool, int, float, str, a Literal of strings, a union of one of them and None, or a list of one.
        default, help, min, max, above, below, affects: Arguments of `setting`.
        repeats: Whether a list is given by repeating the option, with one value each.
    """

    key: str
    kind: Any
    default: Any
    help: str
    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None
    affects: Effect = RESULTS
    repeats: bool = False

    @property
    def members(self) -> tuple[Any, ...]:
        """The types that `kind` is a union of."""
        is_union = typing.get_origin(self.kind) in (typing.Union, types.UnionType)
        return typing.get_args(self.kind) if is_union else (self.kind,)

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a Literal."""
        literals = [member for member in self.members if typing.get_origin(member) is Literal]
        return tuple(choice for literal in literals for choice in typing.get_args(literal))

    @property
    def element(self) -> Option | None:
        """The option of one value of a list; None if `kind` is not a list."""
        if typing.get_origin(self.kind) is not list:
            return None
        (kind,) = typing.get_args(self.kind)
        return Option(self.key, kind, None, self.help, self.min, self.max, self.above, self.below)

    def from_text(self, text: str | list[str]) -> Any:
        """The typed value of a word of the command line, or of a list's words. Raises ConfigError."""
        if self.element is not None:
            return [self.element.from_text(word) for word in text]
        assert isinstance(text, str)
        return self.check(self._convert(text))

    def from_plain(self, value: Any) -> Any:
        """The typed value of a value in a file. Raises ConfigError.

        Text is converted too: YAML reads 1e-3 as text.
        """
        if str in self.members:
            if isinstance(value, bool):
                value = str(value).lower()
            elif value is not None and not isinstance(value, list | dict | set):
                value = str(value)
        elif isinstance(value, str):
            value = self._convert(value)
        elif float in self.members and type(value) is int:
            try:
                value = float(value)
            except OverflowError:
                value = math.inf
        return self.check(value)

    def check(self, value: Any) -> Any:
        """The value itself. Raises ConfigError for a wrong type, a value out of range or not a choice."""
        if (element := self.element) is not None:
            if not isinstance(value, list) or not value or not all(map(element._fits, value)):
                raise ConfigError(f"{self.key}: {value!r} is not a list of {NAMES[element.kind][1]}")
            return [element.check(part) for part in value]
        if not self._fits(value):
            hint = near_miss(str(value), self.choices)
            raise ConfigError(f"{self.key}: {show(value)} is not {self._describe()}{hint}")
        if isinstance(value, str) or value is None:
            return value
        if value != value or abs(value) == math.inf:
            raise ConfigError(f"{self.key}: {value} is not a finite number")
        for wrong, what, limit in (
            (self.min is not None and value < self.min, "below", self.min),
            (self.max is not None and value > self.max, "above", self.max),
            (self.above is not None and value <= self.above, "not above", self.above),
            (self.below is not None and value >= self.below, "not below", self.below),
        ):
            if wrong:
                raise ConfigError(f"{self.key}: {value} is {what} {limit}")
        return value

    def _convert(self, text: str) -> Any:
        """The value that a text stands for, or the text where it stands for none."""
        if type(None) in self.members and text.lower() in NULLS:
            return None
        if bool in self.members:
            return WORDS.get(text.lower(), text)
        readers = {int: (int, lambda word: int(word, 0)), float: (float,)}  # 0: 0x10 is 16
        for read in (read for kind in self.members for read in readers.get(kind, ())):
            with suppress(ValueError):
                return read(text)
        return text

    def _fits(self, value: Any) -> bool:
        kinds = [kind for kind in self.members if isinstance(kind, type)]
        numbers = [int] if float in kinds else []
        return type(value) in kinds + numbers or (isinstance(value, str) and value in self.choices)

    def _describe(self) -> str:
        choices = ", ".join(self.choices)
        several = "one of " * (len(self.choices) > 1)
        return " or ".join(
            [several + choices] * bool(choices) + [NAMES[k][0] for k in self.members if k in NAMES]
        )


def check_known(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises ConfigError for the first of `names` that is not among `known`.

    Args:
        names: Keys or options, dotted.
        known: Those that exist.
        what: First words of the message, such as "unknown option".
    """
    options = list(known)
    for name in names:
        if name not in options:
            last = name.rpartition(".")[2].lstrip("-")
            last = ALIASES.get(last, last)
            same = [option for option in options if option.rpartition(".")[2].lstrip("-") == last]
            hint = f"; did you mean {same[0]!r}?" if same else near_miss(name, options)
            raise ConfigError(f"{what} {name}{hint}")


def show(value: Any) -> str:
    """A value as YAML and the command line write it, with text in quotes."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


class Settings:
    """Base of the frozen dataclasses of settings; each field is made by `setting`."""

    section: ClassVar[str]

    def __post_init__(self) -> None:
        """Raises ConfigError for a wrong type, a value out of range, or values that do not go together."""
        for name, option in options_of(type(self)).items():
            option.check(getattr(self, name.rpartition(".")[2]))
        self.check_together()

    def check_together(self) -> None:
        """Raises ConfigError for values that do not go together."""


def options_of(kind: type[Any], section: str | None = None) -> dict[str, Option]:
    """The fields of a settings class as options, by dotted key.

    Args:
        kind: Settings class.
        section: First part of the keys; the class's own by default.
    """
    hints = typing.get_type_hints(kind)
    options = {}
    for item in fields(kind):
        key = f"{section or kind.section}.{item.name}"
        options[key] = Option(key, hints[item.name], item.default, **item.metadata)
    return options
