"""How much memory a run takes at its highest."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


class PeakMemory:
    """The highest that memory has been since this was made, beyond what the process held then.

    On a GPU that is what PyTorch allocated there. On the CPU it is resident memory as Linux counts it, whose
    highest value belongs to the process as a whole: it tells of a run where the process does nothing else.
    """

    def __init__(self) -> None:
        self._before = _resident("VmRSS")
        if torch.cuda.is_initialized():  # asking an idle GPU would wake it
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)

    def read(self, device: torch.device) -> int | None:
        """Bytes so far on `device`; None on a CPU whose system does not tell (other than Linux)."""
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device)
        now = _resident("VmHWM")
        return None if now is None or self._before is None else now - self._before


def _resident(field: str) -> int | None:
    """Bytes of a line of Linux's status of this process, whose unit is KiB."""
    if not _STATUS.is_file():
        return None
    lines = dict(line.split(":", 1) for line in _STATUS.read_text("utf-8").splitlines() if ":" in line)
    return int(lines[field].split()[0]) * 1024 if field in lines else None
