"""Errors caused by the user's input. The commands print one line for each, without a traceback."""

from __future__ import annotations

from recgrela.system.text import bounded, one_line, printable

__all__ = ["ConfigError", "DataError", "DiskFull", "ReportedElsewhere", "RunError", "UserError", "one_line"]


class UserError(Exception):
    """An error that the user can fix: commands print ``error: <message>`` to stderr and exit with 2.

    Control characters of the message are escaped, and a message longer than a few lines loses its middle.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(bounded(printable(str(message))))


class ReportedElsewhere(UserError):
    """Another process failed, and its own message has the reason; commands exit with 2 and print nothing."""


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
