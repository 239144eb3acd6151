"""Peak memory of a run."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


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
        return None if now is None or self._before is None else now - self._before


def _resident(field: str) -> int | None:
    """A field of Linux's status of this process, in bytes (the file is in KiB)."""
    if not _STATUS.is_file():
        return None
    lines = dict(line.split(":", 1) for line in _STATUS.read_text("utf-8").splitlines() if ":" in line)
    return int(lines[field].split()[0]) * 1024 if field in lines else None
