"""Command lines: options parsed to typed values, and errors as one line with exit code 2."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from recgrela.settings.fields import Option, check_known, show
from recgrela.system.errors import ConfigError, ReportedElsewhere, UserError, one_line
from recgrela.system.out_of_memory import MemoryPhase
from recgrela.system.output import OutputClosed, standard_streams, tell, write_result

if TYPE_CHECKING:
    from _typeshed import SupportsWrite
from recgrela.system.text import printable, quote

EXIT_USER_ERROR = 2
ANYTHING = MemoryPhase(
    "running this command", "give smaller sizes (--help lists the settings), or more memory"
)
EXIT_SIGNAL = 128  # plus the number of the signal, as in shells


def run(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Run a command on `argv` (None: the process's own) and return its exit code.

    A `UserError`, an error of the operating system (such as missing permission) and a lack of memory become
    one line on stderr and exit code 2; `MemoryPhase` makes the line of a lack of memory. Ctrl-C outside
    training becomes 130. A reader of the results that has ended, as `head` does, becomes 141 without a word.
    Any other exception is a bug and keeps its traceback.
    """
    with standard_streams():
        return _run(command, sys.argv[1:] if argv is None else list(argv))


def _run(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    try:
        with ANYTHING:
            return command(argv)
    except OutputClosed:
        return EXIT_SIGNAL + signal.SIGPIPE
    except ReportedElsewhere:
        return EXIT_USER_ERROR
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{where}{error.strerror or error or type(error).__name__}")
    except KeyboardInterrupt:
        tell("interrupted")
        return EXIT_SIGNAL + 2


def _fail(message: str) -> int:
    rank = os.environ.get("RANK", "0")
    tell(f"{'' if rank == '0' else f'process {rank}: '}error: {one_line(message)}")
    return EXIT_USER_ERROR


class Parser(argparse.ArgumentParser):
    """A parser of `Option`s that raises ConfigError instead of exiting and accepts no abbreviations.

    Args:
        command: Name of the command's module in `recgrela`.
        description, usage, epilog: Texts of --help, as for `argparse.ArgumentParser`.
    """

    def __init__(
        self, command: str, description: str = "", usage: str | None = None, epilog: str | None = None
    ) -> None:
        super().__init__(
            prog=f"python -m recgrela.{command}",
            description=description,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
            allow_abbrev=False,
            exit_on_error=False,
            usage=usage,
            epilog=epilog,
        )
        self._options: dict[str, Option] = {}
        self._values: dict[str, Any] = {}

    def add(self, options: Iterable[Option], values: Mapping[str, Any] | None = None) -> None:
        """Add options; --help groups those with a dotted key by section.

        Args:
            options: The options.
            values: Values by key that replace the defaults.
        """
        groups: dict[str, argparse._ActionsContainer] = {"": self}
        for option in options:
            value = (values or {}).get(option.key, option.default)
            default = "" if value in (None, []) else f" Default: {_plain(value)}."
            section, _, name = option.key.rpartition(".")
            choices = ("true", "false") if option.kind is bool else option.choices
            metavar = {int: "N", float: "X"}.get(option.kind, name.upper())
            if section not in groups:
                groups[section] = self.add_argument_group(f"{section} settings")
            groups[section].add_argument(
                f"--{option.key}",
                dest=option.key,
                default=argparse.SUPPRESS,
                action="append" if option.many == "append" else "store",
                nargs="+" if option.many in ("store", "any") else None,
                metavar="{" + ",".join(choices) + "}" if choices else metavar,
                help=printable(option.help + default).replace("%", "%%"),
            )
            self._options[option.key] = option
            self._values[option.key] = value

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """Typed values of all options, by key. Raises ConfigError for an unknown option or a wrong value."""
        given, rest = self.split(argv)
        unread = [word.partition("=")[0] for word in rest if word.startswith("--")]
        check_known(unread, [f"--{key}" for key in self._options] + ["--help"], "unknown option")
        if rest:
            raise ConfigError(f"unexpected argument {quote(rest[0])}")
        options = self._options
        typed = {key: options[key].read(word) if key in options else word for key, word in given.items()}
        return self._values | typed

    def split(self, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """The words given for each option, by key, and the words that belong to none."""
        try:
            namespace, rest = self.parse_known_args(list(argv))
        except argparse.ArgumentError as error:
            is_bare = error.message.startswith("expected ")  # "one argument" or "at least one argument"
            raise ConfigError(f"{error.argument_name} needs a value" if is_bare else str(error)) from error
        return vars(namespace), rest

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print --help as a result: argparse itself would drop what cannot be written."""
        if file is None:
            write_result(self.format_help())
        else:
            super().print_help(file)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def peek(argv: Sequence[str], options: Iterable[Option]) -> dict[str, Any]:
    """The words given for some options, by key; other words are ignored."""
    parser = Parser("")
    parser.add(options)
    return parser.split([word for word in argv if word not in ("-h", "--help")])[0]


def to_argv(values: Mapping[str, Any]) -> list[str]:
    """The words of a command line that sets these values, given by dotted key."""
    words = []
    for key, value in values.items():
        if isinstance(value, list):
            words += [f"--{key}", *map(_plain, value)]
        else:
            words.append(f"--{key}={_plain(value)}")
    return words


def _plain(value: Any) -> str:
    """A value as a word of the command line."""
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value))
    return value if isinstance(value, str) else show(value)
