"""Memory of a run: its peak, what is available, and whether a size can fit."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from recgrela.system.errors import ConfigError

_STATUS = Path("/proc/self/status")
_SYSTEM = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


class PeakMemory:
    """Measures the peak memory of a run, which begins when the object is made.

    On a GPU it is PyTorch's peak allocation. On the CPU it is the peak resident memory that Linux records for
    the process, less the resident memory at the beginning; the process must do nothing else.
    """

    def __init__(self) -> None:
        self._before = _resident("VmRSS")
        if torch.cuda.is_initialized():  # a query would initialize a GPU that the run does not use
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)

    def read(self, device: torch.device) -> int | None:
        """Bytes on `device` so far; None for a CPU on a system other than Linux."""
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device)
        now = _resident("VmHWM")
        # Linux adds up the pages of threads late, so the recorded peak may be below the beginning.
        return None if now is None or self._before is None else max(now - self._before, 0)


def in_gb(size: float) -> str:
    """A number of bytes as text, such as "12.3 GB" (1e9 bytes), "4 MB" or "5 kB"."""
    if size >= 1e9:
        return f"{size / 1e9:,.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def check_fits(needs: Mapping[str, int], device: torch.device, helps: str) -> None:
    """Raises ConfigError if a device has less memory than is needed at the same time.

    Args:
        needs: bytes, by what they are for, which will be allocated in any case.
        device: the device.
        helps: what the user can do, "lower ... or raise ...".
    """
    needed, available = sum(needs.values()), available_memory(device)
    if available is None or needed <= available:
        return
    parts = ", ".join(f"{name} {in_gb(size)}" for name, size in needs.items())
    where = "GPU memory" if device.type == "cuda" else "memory"
    raise ConfigError(
        f"{in_gb(needed)} of {where} are needed ({parts}), but {in_gb(available)} are available; {helps}"
    )


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process can still allocate at most; None if the system does not say.

    On a GPU these are the free bytes and those that PyTorch keeps for reuse. On the CPU they are the least of
    what the system has, with swap, of what the process's control groups admit, with the file cache that they
    can drop, and of what its own limits (`ulimit -v`, `-d`) leave; what the heap keeps for reuse is added.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    found = [*_system_memory(), *_group_memory(), *_own_limits()]
    return max(min(found), 0) + _reusable() if found else None


def _system_memory() -> Iterator[int]:
    lines = _fields(_SYSTEM)
    if "MemAvailable" in lines:
        yield lines["MemAvailable"] + lines.get("SwapFree", 0)


def _group_memory() -> Iterator[int]:
    """What each control group of the process admits, and each group that contains it; versions 1 and 2."""
    if not _OWN_GROUPS.is_file():
        return
    for line in _OWN_GROUPS.read_text("utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage, files = (
                _GROUPS,
                "memory.max",
                "memory.current",
                ("active_file", "inactive_file"),
            )
        elif "memory" in controllers.split(","):
            root, limit, usage = _GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            files = ("total_active_file", "total_inactive_file")
        else:
            continue
        folder = root / path.strip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(root) and (group / limit).is_file() and (group / usage).is_file():
                text = (group / limit).read_text("ascii").strip()
                if text != "max":
                    lines = (group / "memory.stat").read_text("ascii").splitlines()
                    stat = dict(line.split() for line in lines)
                    cache = sum(int(stat.get(name, 0)) for name in files)
                    yield int(text) - int((group / usage).read_text("ascii")) + cache


def _own_limits() -> Iterator[int]:
    for kind, field in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit, used = resource.getrlimit(kind)[0], _resident(field)
        if limit != resource.RLIM_INFINITY and used is not None:
            yield limit - used


class _Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        *((f"not_used_{i}", ctypes.c_size_t) for i in range(8)),
        ("fordblks", ctypes.c_size_t),  # bytes of free blocks
        ("keepcost", ctypes.c_size_t),
    ]


def _reusable() -> int:
    """Bytes of the heap that are free; 0 if the C library does not say."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:  # musl, or glibc before 2.33
        return 0
    mallinfo.restype = _Mallinfo
    return mallinfo().fordblks


def _resident(field: str) -> int | None:
    """A field of Linux's status of this process, in bytes."""
    return _fields(_STATUS).get(field)


def _fields(path: Path) -> dict[str, int]:
    """The sizes in a file such as /proc/meminfo, in bytes (the file has KiB); empty without the file."""
    if not path.is_file():
        return {}
    lines = (line.split() for line in path.read_text("utf-8").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}
