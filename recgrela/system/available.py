"""Memory that a process can still allocate."""

from __future__ import annotations

import os
import resource
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that this process can still allocate without swapping, by the system and by its limits.

    The limits are those of a container (cgroup v2) and of the address space (`ulimit -v`).
    """
    free = [_of_system()]
    limit, used = (_number(_CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        free.append(limit - used)
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = _number(Path("/proc/self/statm"))  # its first number is the size of the address space
    if space != resource.RLIM_INFINITY and pages is not None:
        free.append(space - pages * os.sysconf("SC_PAGE_SIZE"))
    return max(min(free), 0)


def _of_system() -> int:
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:  # a system other than Linux
        lines = []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _number(path: Path) -> int | None:
    """The first number of a file of the system; None without the file, or for the word max."""
    try:
        word = path.read_text("utf-8").split()[0]
    except (OSError, IndexError):
        return None
    return int(word) if word.isdecimal() else None
