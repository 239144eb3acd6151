"""Errors caused by what the user gave: one clear line each, printed by the commands without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: commands print ``error: <message>`` to stderr and exit with 2."""


class DataError(UserError):
    """Data that cannot be read or used; the message names the file, and line and column where known."""


class ConfigError(UserError):
    """A setting, or a combination of settings, that makes no sense."""


class RunError(UserError):
    """A run folder or checkpoint that is missing, damaged, or of another model."""
