"""Typed settings: the help, limits and effects of fields, and the validation of values."""

from __future__ import annotations

import operator
import sys
import types
import typing
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import date
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from recgrela.system.errors import ConfigError
from recgrela.system.suggest import near_miss
from recgrela.system.text import quote, shorten

T = TypeVar("T")

MAX_INT = 2**31 - 1  # default limit of integers
MAX_SEED = 2**64 - 1
MAX_THREADS = 1024

BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
# Descriptions of kinds in error messages.
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
LISTS = {int: "a list of whole numbers", str: "a list of names"}
ALIASES = {"learning_rate": "lr", "num_epochs": "epochs", "max_epochs": "epochs"}  # names in other projects


class Effect(NamedTuple):
    """The effects of a setting.

    Attributes:
        results: Whether it affects the results of a run; protocol.json then records a change from the preset.
        comparison: Whether it affects results, time or memory, so that the runs of a comparison share it.
        resumable: Whether a resumed run may change it.
    """

    results: bool
    comparison: bool
    resumable: bool


RESULTS = Effect(results=True, comparison=True, resumable=False)
LENGTH = Effect(results=True, comparison=True, resumable=True)  # when training stops
SPEED = Effect(results=False, comparison=True, resumable=True)
NOTHING = Effect(results=False, comparison=False, resumable=True)
PLACE = Effect(results=False, comparison=False, resumable=False)  # location of the run folder


@dataclass(frozen=True)
class Option:
    """A value that users give: a field of a `Settings` class, or an option of a command.

    Attributes:
        key: Dotted key, such as "train.lr".
        default: Value if none is given.
        help: Text shown by --help.
        kind: bool, int, float or str.
        choices: Allowed values of a str; empty if any is allowed.
        optional: Whether None is allowed.
        many: None for a single value. A list is given as one option with several words ("store"), or as
            several options with one word each ("append"). With "any", several words are a list and a single
            one is a single value.
        min, max: Inclusive limits of a number.
        above, below: Exclusive limits of a number.
        affects: The effects of the value.
    """

    key: str
    default: Any
    help: str
    kind: type = str
    choices: tuple[str, ...] = ()
    optional: bool = False
    many: Literal["store", "append", "any"] | None = None
    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None
    affects: Effect = RESULTS

    def read(self, value: Any) -> Any:
        """The typed value of a word on the command line or a value in a file. Raises ConfigError."""
        if self.many == "any" and isinstance(value, list) and len(value) == 1:
            (value,) = value
        if self.many and isinstance(value, list):
            return self.check([self._convert(part) if isinstance(part, str) else part for part in value])
        return self.check(self._convert(value))

    def check(self, value: Any) -> Any:
        """Returns the value. Raises ConfigError for a wrong type, range or choice."""
        if value is None and self.optional:
            return value
        is_list = self.many is not None and (self.many != "any" or isinstance(value, list))
        parts = value if is_list else [value]
        if not isinstance(parts, list) or not parts or not all(map(self._fits, parts)):
            what = LISTS[self.kind] if is_list else KINDS[self.kind]
            if self.choices:
                what = "one of " * (len(self.choices) > 1) + ", ".join(self.choices)
            what += " or null" * self.optional + near_miss(
                value if isinstance(value, str) else "", self.choices
            )
            if self.kind is str and not is_list and isinstance(value, list) and len(value) > 1:
                joined = ",".join(one if isinstance(one, str) else show(one) for one in value)
                what += f"; write one text, {quote(joined)}"
            raise ConfigError(f"{self.key}: {_shown(value)} is not {what}")
        for number in parts if self.kind in (int, float) else []:
            if not abs(number) <= sys.float_info.max:  # also rejects NaN
                raise ConfigError(f"{self.key}: {quote(number)} is not a finite number")
            for is_outside, side, limit in (
                (operator.lt, "below", self.min),
                (operator.gt, "above", MAX_INT if self.max is None and self.kind is int else self.max),
                (operator.le, "not above", self.above),
                (operator.ge, "not below", self.below),
            ):
                if limit is not None and is_outside(number, limit):
                    raise ConfigError(f"{self.key}: {quote(number)} is {side} {limit}")
        return value

    def _fits(self, value: Any) -> bool:
        is_kind = type(value) is self.kind or (self.kind is float and type(value) is int)
        return is_kind and (not self.choices or value in self.choices)

    def _convert(self, value: Any) -> Any:
        """The value converted to the option's kind if it can be, else unchanged."""
        if not isinstance(value, str):
            if self.kind is str and isinstance(value, bool | int | float | date):
                return self._convert(show(value))
            with suppress(OverflowError):
                value = float(value) if self.kind is float and type(value) is int else value
            return value
        if self.optional and value.lower() in ("null", "~"):
            return None
        if self.kind is bool:
            return BOOLS.get(value.lower(), value)
        if self.kind in (int, float):  # in files too, because YAML reads 1e-3 as text
            with suppress(ValueError):
                return self.kind(value)
            with suppress(ValueError):
                return self.kind(int(value, 0))  # 0x10 is 16
        if self.choices and value not in self.choices and value.lower() in BOOLS:  # false for off
            same = (choice for choice in self.choices if BOOLS.get(choice) is BOOLS[value.lower()])
            return next(same, value)
        return value


def setting(default: T, help: str, **attributes: Any) -> T:
    """A field of a `Settings` class; `attributes` are limits and `affects` of `Option`."""
    return field(default=default, metadata={"help": help, **attributes})


class Settings:
    """Base of the frozen dataclasses of settings; `setting` makes each field.

    A field's type is bool, int, float, str, a Literal of strings, a list of one of them, or a union of some
    of: one such type, a list of it, None.
    """

    section: ClassVar[str]

    def __post_init__(self) -> None:
        """Raises ConfigError for a wrong type, a value out of range, or incompatible values."""
        for name, option in zip(vars(self), options_of(type(self)).values(), strict=True):
            option.check(getattr(self, name))
        self.check_together()

    def check_together(self) -> None:
        """Raises ConfigError for incompatible values."""


def options_of(kind: type[Any], section: str | None = None) -> dict[str, Option]:
    """The fields of a `Settings` class as options, by dotted key; `section` replaces the class's own."""
    hints = typing.get_type_hints(kind)
    options = {}
    for item in fields(kind):
        key, hint = f"{section or kind.section}.{item.name}", hints[item.name]
        is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        allowed = [one for one in (typing.get_args(hint) if is_union else (hint,)) if one is not type(None)]
        lists = [one for one in allowed if typing.get_origin(one) is list]
        one = typing.get_args(lists[0])[0] if lists else allowed[0]
        choices = typing.get_args(one)  # of a Literal
        parts: dict[str, Any] = {"kind": str if choices else one, "choices": choices}
        parts["optional"] = is_union and type(None) in typing.get_args(hint)
        if lists:
            parts["many"] = "any" if len(allowed) > 1 else "store"
        options[key] = Option(key, item.default, **parts, **item.metadata)
    return options


def check_known(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises ConfigError, which begins with `what`, for the first of `names` that is not `known`."""
    known = list(known)
    for name in names:
        if name not in known:
            last = name.rpartition(".")[2].lstrip("-")
            last = ALIASES.get(last, last)
            same = [other for other in known if other.rpartition(".")[2].lstrip("-") == last]
            hint = f"; did you mean {same[0]!r}?" if same else near_miss(name, known)
            raise ConfigError(f"{what} {shorten(name)}{hint}")


def _shown(value: Any) -> str:
    """`show` in a message, where a long value is shortened."""
    return show(value) if value is None or isinstance(value, bool | date) else quote(value)


def show(value: Any) -> str:
    """A value in error messages, as in YAML; text is in quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, date) else repr(value)
