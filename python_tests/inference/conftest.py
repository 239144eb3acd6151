from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from recgrela import Recommender


@pytest.fixture(scope="session")
def recommender(finished_run: Path) -> Recommender:
    return Recommender.load(finished_run, device="cpu")


@pytest.fixture
def copy(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "copy"))
