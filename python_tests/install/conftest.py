from __future__ import annotations

import sys
from pathlib import Path

import pytest

from python_tests.support.machine import Machine

sys.path.append(str(Path(__file__).parents[2]))  # build_backend; after an installed recgrela


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)
