"""Errors caused by the user's input. The commands print one line for each, without a traceback."""

from __future__ import annotations


def one_line(message: object) -> str:
    """The text of a message or exception, on one line."""
    return " ".join(str(message).split())


class UserError(Exception):
    """An error that the user can fix: commands print ``error: <message>`` to stderr and exit with 2."""


class DataError(UserError):
    """Unreadable or unusable data; the message names the file, and line and column if known."""


class ConfigError(UserError):
    """An invalid setting or combination of settings."""


class RunError(UserError):
    """A failed run, or a run folder or checkpoint that is missing, damaged or of another model."""


class DiskFull(RunError):
    """No space is left for what must be stored."""


class OutOfMemory(RunError):
    """Memory ran out; the message says while doing what, and which settings need less."""
