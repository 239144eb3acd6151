"""Runs on packed data: the bits of a run on the source, and a run that resumes on the other form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from python_tests.support.runs import assert_same_tensors, make_run, options, run_train
from recgrela import evaluate, recommend
from recgrela.data import DataConfig, load
from recgrela.data.__main__ import main as convert


@pytest.fixture
def sources(tmp_path: Path) -> tuple[str, str]:
    """A CSV file and its packed form."""
    data = load(DataConfig(synthetic_users=60, synthetic_items=40, synthetic_events=20))
    lines = ["user_id,item_id,timestamp"]
    for user, first in enumerate(data.offsets[:-1].tolist()):
        events = data.items[first : int(data.offsets[user + 1])].tolist()
        lines += [f"user {user},item {item},{time}" for time, item in enumerate(events)]
    (tmp_path / "events.csv").write_text("\n".join(lines) + "\n")
    assert convert(["convert", str(tmp_path / "events.csv"), str(tmp_path / "packed")]) == 0
    return str(tmp_path / "events.csv"), str(tmp_path / "packed")


@pytest.mark.parametrize("objective", ["all", "last"])
def test_a_run_on_packed_data_has_the_same_bits(
    sources: tuple[str, str], tmp_path: Path, objective: str
) -> None:
    source, packed = sources
    settings = [f"--train.objective={objective}", "--data.eval_users=20", "--train.max_steps=10"]
    one, other = (make_run(tmp_path, f"run{n}", f"--data.path={p}", *settings) for n, p in enumerate(sources))
    assert_same_tensors(one / "last.safetensors", other / "last.safetensors")
    protocols = [json.loads((run / "protocol.json").read_text()) for run in (one, other)]
    assert protocols[0]["data"] == protocols[1]["data"]
    assert protocols[0]["evaluation"]["users"].startswith("at most 20 with three events or more")
    assert protocols[0]["settings"]["data.eval_users"] == 20
    # A run on packed data resumes and is evaluated on the source, and the reverse.
    assert evaluate.main([str(other), "--data.path", source]) == 0
    assert recommend.main([str(other), "--user", "user 7"]) == 0
    for run, path in ((one, packed), (other, source)):
        assert run_train("--resume", str(run), "--train.max_steps", "null", "--data.path", path) == 0
    assert_same_tensors(one / "last.safetensors", other / "last.safetensors")


def test_data_that_shrink_end_a_run_with_one_line(
    sources: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from recgrela.training.step import TrainStep

    def shrink(self: TrainStep) -> None:
        (Path(sources[1]) / "items.bin").write_bytes(b"")
        update(self)

    update = TrainStep.update
    monkeypatch.setattr(TrainStep, "update", shrink)
    assert run_train(*options(tmp_path, "run", f"--data.path={sources[1]}")) == 2
    error = capsys.readouterr().err
    assert "items.bin: was changed while it was read, from" in error and len(error.splitlines()) == 1
