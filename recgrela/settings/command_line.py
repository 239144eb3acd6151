"""Command lines: options parsed to typed values, and errors as one line with exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch

from recgrela.settings.fields import Option, check_known, show
from recgrela.system.errors import ConfigError, UserError

EXIT_USER_ERROR = 2
EXIT_SIGNAL = 128  # plus the number of the signal, as in shells


def run(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Run a command on `argv` (None: the process's own) and return its exit code.

    A `UserError`, an error of the operating system (no permission, no such host) and a lack of memory become
    one line on stderr and exit code 2; Ctrl-C outside training becomes 130. Any other exception is a bug and
    keeps its traceback.
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


class Parser(argparse.ArgumentParser):
    """A parser of `Option`s that raises ConfigError instead of exiting and accepts no abbreviations.

    Args:
        command: Name of the command's module in `recgrela`.
        description: First paragraph of --help.
        texts: Other texts of `argparse.ArgumentParser`: usage, epilog.
    """

    def __init__(self, command: str, description: str = "", **texts: str) -> None:
        super().__init__(
            prog=f"python -m recgrela.{command}",
            description=description,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
            allow_abbrev=False,
            exit_on_error=False,
            usage=texts.get("usage"),
            epilog=texts.get("epilog"),
        )
        self._known: dict[str, Option] = {}
        self._values: dict[str, Any] = {}

    def add(
        self, options: Iterable[Option], values: Mapping[str, Any] | None = None, title: str | None = None
    ) -> None:
        """Add options.

        Args:
            options: The options.
            values: Values of options that the command line does not give, by key; their defaults by default.
            title: Heading of the options in --help.
        """
        group = self if title is None else self.add_argument_group(title)
        for option in options:
            value = option.default if values is None else values[option.key]
            default = "" if value is None else f" Default: {_plain(value)}."
            group.add_argument(
                f"--{option.key}",
                dest=option.key,
                default=argparse.SUPPRESS,
                action="append" if option.repeats else "store",
                nargs="+" if option.element and not option.repeats else None,
                metavar=_metavar(option.element or option),
                help=(option.help + default).replace("%", "%%"),
            )
            self._known[option.key] = option
            self._values[option.key] = value

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """Typed values of all options, by key.

        Raises:
            ConfigError: An unknown option or a wrong value.
        """
        words, rest = self.read_words(argv)
        known = [name for action in self._actions for name in action.option_strings]
        check_known(
            [word.partition("=")[0] for word in rest if word.startswith("--")], known, "unknown option"
        )
        if rest:
            raise ConfigError(f"unexpected argument {rest[0]!r}")
        typed = {key: self._known[key].from_text(words[key]) for key in words.keys() & self._known.keys()}
        return self._values | words | typed

    def read_words(self, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """The words given for the options, by key, and those that are left over."""
        try:
            namespace, rest = self.parse_known_args(list(argv))
        except argparse.ArgumentError as error:
            needs = "expected" in error.message and "argument" in error.message
            what = " needs a value" if needs else f": {error.message}"
            raise ConfigError(f"{error.argument_name}{what}") from error
        return vars(namespace), rest

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def peek(argv: Sequence[str], options: Iterable[Option]) -> dict[str, Any]:
    """The words given for the options that decide which others there are, by key."""
    parser = Parser("")
    parser.add(options)
    return parser.read_words([word for word in argv if word not in ("-h", "--help")])[0]


def to_argv(values: Mapping[str, Any]) -> list[str]:
    """Options that give these values, by dotted key."""
    return [f"--{key}={_plain(value)}" for key, value in values.items()]


def _plain(value: Any) -> str:
    """A value as a word of the command line."""
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value))
    return value if isinstance(value, str) else show(value)


def _metavar(option: Option) -> str:
    if option.choices:
        return "{" + ",".join(option.choices) + "}"
    names = {bool: "{true,false}", int: "N", float: "X"}
    found = [names[kind] for kind in option.members if kind in names]
    return found[0] if found else option.key.rpartition(".")[2].upper()
