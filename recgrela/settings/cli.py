"""What the commands share: errors as one line with exit code 2, option errors that suggest a near miss."""

from __future__ import annotations

import argparse
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

import torch
from jsonargparse import ArgumentParser, Namespace

from recgrela.system.errors import ConfigError, UserError
from recgrela.system.suggest import near_miss

EXIT_USER_ERROR = 2
EXIT_SIGNAL = 128  # plus the signal's number, as shells have it

MAX_THREADS = 1024
MAX_COUNT = 2**31 - 1

ALIASES = {
    "learning_rate": "lr",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
}  # what others call an option


def run(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Run a command's body on `argv` (None: the process's own) and return its exit code.

    A `UserError`, an error of the system (no permission, no such host) and a lack of memory become one line
    on stderr and exit code 2; Ctrl-C outside training becomes 130. Anything else is a bug, with a traceback.
    """
    try:
        return command(sys.argv[1:] if argv is None else list(argv))
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{where}{error.strerror or error or type(error).__name__}")
    except (MemoryError, torch.OutOfMemoryError) as error:
        return _fail(f"out of memory: {error}; a smaller batch or max_tokens needs less".replace(": ;", ";"))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_SIGNAL + 2


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return EXIT_USER_ERROR


def make_parser(command: str, description: str) -> ArgumentParser:
    """An option parser that raises instead of exiting and takes no abbreviated options."""
    return ArgumentParser(
        prog=f"python -m recgrela.{command}", description=description, exit_on_error=False, allow_abbrev=False
    )


def parse(
    parser: ArgumentParser,
    argv: Sequence[str],
    types_of: Mapping[str, object] | None = None,
    source: str = "",
) -> Namespace:
    """Parse options; `types_of` maps option names to annotations, for messages about wrong values.

    Raises:
        ConfigError: an unknown option or a wrong value, in one line that begins with `source`.
    """
    prefix = f"{source}: " if source else ""
    if not source and any(argument in ("-h", "--help") for argument in argv):
        parser.parse_args(["--help"])
    check_names(option_names(argv), known_options(parser), prefix)
    try:
        return parser.parse_args(list(argv))
    except argparse.ArgumentError as error:
        raise ConfigError(prefix + _explain(str(error), types_of or {})) from error


def check_names(names: Sequence[str], known: Sequence[str], prefix: str) -> None:
    """Raises ConfigError for the first of `names` that is not known; `prefix` names the file."""
    dashes = "--" if prefix == "" else ""
    what = f"{prefix}unknown {'key' if prefix else 'option'}"
    for name in names:
        if name not in known:
            hint = _near_key(dashes + name, [dashes + option for option in known])
            raise ConfigError(f"{what} {dashes}{name}{hint}")


def check_counts(options: Namespace, *names: str) -> None:
    """Raises ConfigError for an option that is given and below 1 or beyond reason."""
    for name in names:
        check_range(name, getattr(options, name), 1, MAX_THREADS if name == "threads" else MAX_COUNT)


def check_range(name: str, value: float | None, least: int, most: int) -> None:
    """Raises ConfigError for a setting that is given and outside `least` .. `most`."""
    if value is None:
        return
    if value < least:
        raise ConfigError(f"{name}: {value} is below {least}")
    if not value <= most:  # NaN too
        raise ConfigError(f"{name}: {value} is above {most}")


def known_options(parser: ArgumentParser) -> list[str]:
    """Every option of a parser, dotted, without its dashes."""
    return [*parser.get_defaults(skip_validation=True).keys(), "help"]


def option_names(argv: Sequence[str]) -> list[str]:
    """The long options that occur in `argv`, without dashes and values."""
    return [word[2:].partition("=")[0] for word in argv if word.startswith("--") and len(word) > 2]


def dataclass_types(kind: type, prefix: str) -> dict[str, object]:
    """`prefix.field` -> annotation of every field of a dataclass."""
    hints = typing.get_type_hints(kind)
    return {f"{prefix}.{field.name}": hints[field.name] for field in fields(kind)}


def _near_key(name: str, known: Sequence[str]) -> str:
    """Near miss of a dotted key; a bare `lr` or a wrong section finds the key with that last part."""
    last = name.rpartition(".")[2].lstrip("-")
    last = ALIASES.get(last, last)
    for key in known:
        if key.rpartition(".")[2].lstrip("-") == last:
            return f"; did you mean {key!r}?"
    return near_miss(name, known)


def _explain(message: str, types_of: Mapping[str, object]) -> str:
    """The parser's message in one line; in plain words where the option's type is known."""
    key = re.search(r'Parser key "([^"]+)"', message)
    value = re.search(r"(?:Got value|Given value): (.*)\Z", message, re.DOTALL)
    if key and value and key[1] in types_of:
        kind, given = types_of[key[1]], value[1].strip()
        given = "null" if given == "None" else given
        hint = near_miss(given, [str(choice) for choice in _choices(kind)])
        return f"{key[1]}: {given!r} is not {_describe(kind)}{hint}"
    missing = re.search(r"argument (--[\w.]+).*: expected one argument", message)
    if missing:
        return f"{missing[1]} needs a value"
    return " ".join(message.split())


def _members(kind: object) -> tuple[object, ...]:
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if is_union else (kind,)


def _choices(kind: object) -> list[object]:
    literals = [member for member in _members(kind) if typing.get_origin(member) is typing.Literal]
    return [choice for literal in literals for choice in typing.get_args(literal)]


def _describe(kind: object) -> str:
    words: dict[object, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
    }
    parts = [words[member] for member in _members(kind) if member in words]
    choices = _choices(kind)
    if choices:
        parts.insert(0, "one of " * (len(choices) > 1) + ", ".join(map(str, choices)))
    return " or ".join(parts) or str(kind)
