"""`recgrela.train`, of which one process kills itself at its first attempt once the run has a checkpoint."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from recgrela import train


def die_after(checkpoint: Path) -> None:
    """Kills this process as soon as a file exists."""
    while not checkpoint.is_file():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Args: the checkpoint to wait for, and the options of `recgrela.train`."""
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        threading.Thread(target=die_after, args=[Path(sys.argv[1])], daemon=True).start()
    return train.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
