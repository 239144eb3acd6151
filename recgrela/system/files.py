"""Atomic file writes: a file is written under a temporary name or none, then renamed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from recgrela.system.errors import ConfigError, RunError

# Names of unfinished files: ours, and those of `safetensors.save_file`, which earlier versions called.
_UNFINISHED = re.compile(r"\..+\.tmp|\.tmp[A-Za-z0-9]{6}")
_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)


@contextmanager
def atomic_stream(path: Path) -> Iterator[BinaryIO]:
    """A binary file, open for writing, that replaces `path` when the block ends.

    Readers get the old file or the whole new one. The file has no name until it is flushed to disk
    (O_TMPFILE), so the system removes it if the process is killed. On file systems without unnamed files it
    is ``.NAME.tmp`` in the same folder (a rename across file systems is a copy), which `remove_unfinished`
    removes.

    Raises:
        RunError: the file cannot be written (disk full, no permission); the old file is unchanged, as after
            any other exception in the block.
    """
    temporary = temporary_path(path)
    is_named = False
    try:
        file = _open_unnamed(path.parent)
        if file is None:
            is_named = True
            file = temporary.open("wb")
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not is_named:
                temporary.unlink(missing_ok=True)
                is_named = True
                _give_name(file, temporary)
        os.replace(temporary, path)
        flush_file(path.parent)  # makes the rename survive a power failure
    except OSError as error:
        if is_named:
            temporary.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error
    except BaseException:
        if is_named:
            temporary.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, write: Callable[[Path], None]) -> None:
    """Write `path` by `write(temporary)` and a rename, for writers that need a path; see `atomic_stream`.

    Raises:
        RunError: the file cannot be written (disk full, no permission); the old file is unchanged.
    """
    temporary = temporary_path(path)
    try:
        write(temporary)
        flush_file(temporary)
        os.replace(temporary, path)
        flush_file(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `atomic_stream` does.

    A lone surrogate, a byte of a file name that is not UTF-8, is written as in JSON: \\udcff.
    """
    with atomic_stream(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def append_text(path: Path, text: str) -> None:
    """Append UTF-8 text to a file and flush it to disk. Raises RunError if the file cannot be written."""
    try:
        is_new = not path.exists()
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
        flush_file(path)
        if is_new:
            flush_file(path.parent)
    except OSError as error:
        raise _cannot_write(path, error, "") from error


def temporary_path(path: Path) -> Path:
    """The name of a file that is being written and will replace `path`."""
    return path.with_name(f".{path.name}.tmp")


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder. The caller is its only writer."""
    for path in folder.iterdir():
        if _UNFINISHED.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def expand_path(text: str, what: str) -> Path:
    """Expand "~" in a path that a user gave. Raises ConfigError, which names `what`, if it is invalid."""
    if not text.strip() or "\0" in text:
        raise ConfigError(f"{what}: {text!r} is not a path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{what}: {text}: {error}") from error


def file_to_write(text: str, what: str) -> Path:
    """The path of a file that a command will write, checked before its work begins.

    Raises:
        ConfigError: which names the option `what`: no path, a folder, or in a folder that does not exist.
    """
    path = expand_path(text, what)
    if path.is_dir():
        raise ConfigError(f"{what}: {text} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise ConfigError(f"{what}: {path.parent}: no such folder")
    return path


def _open_unnamed(folder: Path) -> BinaryIO | None:
    """A file without a name, None where the system or the file system has none."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None or not Path("/proc/self/fd").is_dir():
        return None
    try:
        descriptor = os.open(folder, flag | os.O_RDWR, 0o666)
    except OSError as error:
        if error.errno in _NO_UNNAMED_FILES:
            return None
        raise
    return os.fdopen(descriptor, "w+b")


def _give_name(file: BinaryIO, path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:  # os.link follows the link in /proc only if a folder is given
        os.link(f"/proc/self/fd/{file.fileno()}", path.name, dst_dir_fd=folder, follow_symlinks=True)
    except OSError as error:  # a file system or a container in which unnamed files cannot be given a name
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        file.seek(0)
        with path.open("wb") as named:
            shutil.copyfileobj(file, named, 1 << 20)
            named.flush()
            os.fsync(named.fileno())
    finally:
        os.close(folder)


def flush_file(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk. Raises OSError if that fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError, kept: str | None = None) -> RunError:
    if kept is None:
        kept = "; the previous file is unchanged" if path.exists() else ""
    return RunError(f"cannot write {path}: {_reason(error)}{kept}")


def _reason(error: OSError) -> str:
    if error.errno is None:
        return str(error)
    return "no space left on the disk" if error.errno == errno.ENOSPC else os.strerror(error.errno)
