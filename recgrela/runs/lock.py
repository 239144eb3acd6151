"""The lock of a run folder: one process writes it at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from recgrela.system.errors import RunError
from recgrela.system.files import remove_unfinished
from recgrela.system.output import tell

LOCK = ".lock"
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # such as Lustre mounted without flock


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, and remove the temporary files that killed processes left in it.

    Everything that writes into a run folder does it in this context; readers need no lock. The lock is an
    flock on the file `.lock`, which names the owner. The system releases it when the process ends, however it
    ends. Of several processes that train one run together, only the one that writes takes the lock.

    Args:
        folder: the folder, which exists.

    Raises:
        RunError: another process owns the folder, or it cannot be locked.
    """
    path = folder / LOCK
    descriptor = _acquire(path)
    try:
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        remove_unfinished(folder)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked, so that no other process's lock is removed
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """A descriptor of the lock file, locked."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise RunError(f"cannot write the run folder {path.parent}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                tell(
                    f"note: {path.parent} cannot be locked on its file system ({error.strerror}); start "
                    "only one process that writes it"
                )
                return descriptor
            text = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise RunError(f"cannot lock the run folder {path.parent}: {error.strerror}") from error
            raise RunError(
                f"{path.parent}: in use by {_describe(text)}, which writes it; wait for it, or stop it"
            ) from error
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # the previous owner has just removed the file; make another


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _describe(text: bytes) -> str:
    """The owner that a lock file names."""
    try:
        owner = json.loads(text)
        return f"process {int(owner['pid'])} on {owner['host']!s:.100} since {owner['since']!s:.40}"
    except (ValueError, TypeError, KeyError):
        return "another process"  # which has not written its name yet
