"""Files that are either whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from recgrela.system.errors import ConfigError, RunError


def atomic_write(path: Path, write: Callable[[Path], None]) -> None:
    """Make `path` with `write(temporary)`, so that a reader sees the old file or the new one, never a part.

    The temporary file lies in the same folder (a rename across file systems is a copy), is flushed to the
    disk before the rename, and is removed when anything fails.

    Raises:
        RunError: the file cannot be written (disk full, no permission); the old one is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # safetensors makes files that nobody else may read
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)  # the rename itself must survive a power cut
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        kept = "; the one that was there is kept" if path.exists() else ""
        raise RunError(f"cannot write {path}: {_reason(error)}{kept}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write` of a text file in UTF-8."""
    atomic_write(path, lambda temporary: _write_text(temporary, text))


def append_text(path: Path, text: str) -> None:
    """Add `text` to a file, in UTF-8 and flushed to the disk. Raises RunError if it cannot be written."""
    try:
        is_new = not path.exists()
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
        _flush(path)
        if is_new:
            _flush(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {_reason(error)}") from error


def given_path(text: str, what: str) -> Path:
    """A path as a user gives it, "~" included. Raises ConfigError, naming `what`, for one that is none."""
    if not text.strip() or "\0" in text:
        raise ConfigError(f"{what}: {text!r} is not a path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{what}: {text}: {error}") from error


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0o022)  # there is no way to read it but to set it
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return "no space left on the disk" if error.errno == errno.ENOSPC else os.strerror(error.errno)
    return str(error)
