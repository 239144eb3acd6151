"""Checks that the models' configurations share. All raise ConfigError with the setting's name."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints

from recgrela.ops.selective_scan import MOST_STATES
from recgrela.system.errors import ConfigError
from recgrela.system.suggest import near_miss


def check_choices(config: Any) -> None:
    """Every field of a configuration that is a Literal holds one of its values."""
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal:
            value, allowed = getattr(config, name), get_args(kind)
            if value not in allowed:
                hint = near_miss(str(value), map(str, allowed))
                raise ConfigError(
                    f"model.{name}: {value!r} is not one of {', '.join(map(str, allowed))}{hint}"
                )


def check_counts(config: Any, *fields: str) -> None:
    """These fields are at least 1."""
    for field in fields:
        if getattr(config, field) < 1:
            raise ConfigError(f"model.{field} must be at least 1, got {getattr(config, field)}")


def check_mamba(config: Any) -> None:
    """Choices, counts and rates of a configuration with Mamba blocks."""
    check_choices(config)
    check_counts(config, "hidden_size", "num_layers", "state_size", "conv_width", "expand")
    check_rates(config, "dropout")
    if config.state_size > MOST_STATES:
        raise ConfigError(f"model.state_size must be at most {MOST_STATES}, got {config.state_size}")


def check_rates(config: Any, *fields: str) -> None:
    """These fields are rates of dropout."""
    for field in fields:
        if not 0 <= getattr(config, field) < 1:
            raise ConfigError(f"model.{field} must be at least 0 and below 1, got {getattr(config, field)}")


def check_heads(config: Any, even: bool = False) -> None:
    """The heads divide the width, or with `even` divide it into even parts."""
    size, heads = config.hidden_size, config.num_heads
    if size % heads or (even and size // heads % 2):
        parts = " into heads of an even width" if even else ""
        raise ConfigError(f"model.num_heads={heads} must divide model.hidden_size={size}{parts}")
