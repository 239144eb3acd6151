"""Files outside the repository that some tests read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_file(relative: str) -> Path:
    """Returns a file below the folder RECGRELA_SHARED; skips the test if the file does not exist."""
    root = os.environ.get("RECGRELA_SHARED")
    if root is None or not (Path(root) / relative).exists():
        pytest.skip(f"set RECGRELA_SHARED to the folder that holds {relative}")
    return Path(root) / relative
