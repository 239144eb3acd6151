from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from python_tests.compare.comparison import REQUESTED, start
from recgrela.compare import runner
from recgrela.compare.__main__ import main


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.subprocess, "Popen", start)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two models and two seeds."""
    out = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.subprocess, "Popen", start)
        assert main([*REQUESTED, f"--out={out}"]) == 0
    return out


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A copy of the comparison that a test may change."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise AssertionError("a run was started")

    monkeypatch.setattr(runner.subprocess, "Popen", refused)
