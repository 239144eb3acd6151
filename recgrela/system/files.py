"""Atomic file writes: a file is written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from recgrela.system.errors import ConfigError, RunError


def atomic_write(path: Path, write: Callable[[Path], None]) -> None:
    """Write `path` by `write(temporary)` and a rename, so that readers get the old file or the whole new one.

    The temporary file is in the same folder (a rename across file systems is a copy), is flushed to disk
    before the rename, and is removed if anything fails.

    Raises:
        RunError: the file cannot be written (disk full, no permission); the old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # safetensors creates files that only the owner can read
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)  # makes the rename survive a power failure
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        kept = "; the previous file is unchanged" if path.exists() else ""
        raise RunError(f"cannot write {path}: {_reason(error)}{kept}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write` for UTF-8 text.

    A lone surrogate, a byte of a file name that is not UTF-8, is written as in JSON: \\udcff.
    """
    atomic_write(path, lambda temporary: _write_text(temporary, text))


def append_text(path: Path, text: str) -> None:
    """Append UTF-8 text to a file and flush it to disk. Raises RunError if the file cannot be written."""
    try:
        is_new = not path.exists()
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
        _flush(path)
        if is_new:
            _flush(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {_reason(error)}") from error


def expand_path(text: str, what: str) -> Path:
    """Expand "~" in a path that a user gave. Raises ConfigError, which names `what`, if it is invalid."""
    if not text.strip() or "\0" in text:
        raise ConfigError(f"{what}: {text!r} is not a path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{what}: {text}: {error}") from error


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _umask() -> int:
    mask = os.umask(0o022)  # the system has no call that only reads the mask
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
