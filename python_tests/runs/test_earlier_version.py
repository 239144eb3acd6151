"""A run folder written by version 0.1.0, stopped inside its second epoch, is still read and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from python_tests.support.runs import run_train
from recgrela import recommend
from recgrela.runs.saved import evaluate, load_data, load_run

RUN = Path(__file__).parents[1] / "golden" / "run"
ONE_USER = 1 / 20  # rounding may change the rank of a user, so metrics may differ by this


def test_it_is_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    saved = load_run(RUN, None, torch.device("cpu"))
    rankings = evaluate(saved, load_data(saved))
    results = json.loads((RUN / "results.json").read_text())
    for split in ("valid", "test"):
        now = rankings[split].as_dict()
        for kind in ("unmasked", "masked"):
            assert now[kind] == pytest.approx(results[split][kind], abs=1.01 * ONE_USER)
    assert recommend.main([str(RUN), "--user=7", "--device=cpu"]) == 0
    assert "cluster 0" in capsys.readouterr().out


def test_it_is_resumed(tmp_path: Path) -> None:
    run = Path(shutil.copytree(RUN, tmp_path / "run"))
    assert run_train("--resume", str(run), "--train.max_steps", "null") == 0
    saved = load_run(run, "last", torch.device("cpu"))
    assert (saved.state.epoch, saved.state.step) == (2, 0)
    first, *_ = saved.folder.metrics.read_epochs()
    assert first == json.loads((RUN / "metrics.jsonl").read_text().splitlines()[0])
