"""A process that is killed before any file operation leaves a folder that is read and resumed.

The folder is copied before every operation; a killed process would leave each of these copies.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from python_tests.support.runs import assert_same_tensors, options, run_train
from recgrela.runs import checkpoint
from recgrela.runs import folder as runs_folder
from recgrela.runs.folder import RunFolder
from recgrela.runs.saved import load_run
from recgrela.runs.state import TrainState
from recgrela.system.errors import RunError
from recgrela.training import final_test, trainer

SMALL = [
    "--data.synthetic_users=20",
    "--data.synthetic_items=20",
    "--data.synthetic_events=10",
    "--data.max_len=16",
    "--model.hidden_size=8",
    "--model.num_layers=1",
]
OPERATIONS = ("fsync", "replace", "link", "unlink", "rename", "mkdir")


def train(folder: Path, epochs: int) -> None:
    """A new run of some epochs, each better than the one before."""
    assert run_train(*options(folder.parent, folder.name, *SMALL, f"--train.epochs={epochs}")) == 0


def copies(run: Path, work: Callable[[], None], to: Path, patch: pytest.MonkeyPatch) -> list[Path]:
    """Copies of a folder before every file operation of `work` and after the last, without repetitions."""
    made: dict[bytes, Path] = {}

    def copy() -> None:
        if run.is_dir():
            files = sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
            content = b"".join(path.name.encode() + b"\0" + path.read_bytes() for path in files)
            if content not in made:
                made[content] = Path(shutil.copytree(run, to / str(len(made))))
                assert len(list(made[content].glob(".*.tmp"))) <= 1

    def watched(operation: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            with pytest.MonkeyPatch.context() as undo:
                for name, real in real_operations.items():
                    undo.setattr(os, name, real)
                copy()
            return operation(*arguments, **options)

        return call

    real_operations = {name: getattr(os, name) for name in OPERATIONS}
    with patch.context() as patched:
        for name, operation in real_operations.items():
            patched.setattr(os, name, watched(operation))
        work()
    copy()
    return list(made.values())


def assert_same_run(one: Path, two: Path) -> None:
    for name in ("best.safetensors", "last.safetensors"):
        assert_same_tensors(one / name, two / name)
    first, second = (RunFolder.open(run) for run in (one, two))
    for key in ("checkpoint", "epoch", "step", "valid", "test"):
        assert first.read_results()[key] == second.read_results()[key]
    epochs = [[record["step"] for record in run.metrics.read_epochs()] for run in (first, second)]
    assert epochs[0] == epochs[1]
    assert not [path.name for path in one.iterdir() if path.name.startswith((".", "best.next"))]


@pytest.mark.parametrize("start", ["new", "resumed"])
def test_every_kill_point(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, short, whole = (tmp_path / name for name in ("run", "short", "whole"))
    train(short, 1)
    train(whole, 2)
    assert load_run(whole, "best", torch.device("cpu")).state.epoch == 2  # it replaces the one of epoch 1
    if start == "resumed":
        shutil.copytree(short, run)
        left = copies(run, lambda: assert_resumed(run, 2), tmp_path / "copies", monkeypatch)
        (end,) = [at for at, folder in enumerate(left) if (folder / "best.next.safetensors").is_file()][:1]
        left = left[: end + 1]  # the others are those of a new run
    else:
        left = copies(run, lambda: train(run, 2), tmp_path / "copies", monkeypatch)
    for module in (trainer, final_test):
        monkeypatch.setattr(module, "draw_curves", lambda *_: None)  # slow
    seen = set()
    for folder in left:
        last = folder / "last.safetensors"
        if not last.is_file():
            with pytest.raises(RunError, match=r"missing"):
                load_run(folder, None, torch.device("cpu"))
            assert run_train("--resume", str(folder)) == 2
            continue
        epoch = checkpoint.read_meta(last)["state"]["epoch"]
        assert load_run(folder, None, torch.device("cpu")).state.epoch == epoch
        assert load_run(folder, "best", torch.device("cpu")).state.epoch == epoch
        is_next = (folder / "best.next.safetensors").is_file()
        seen.add((epoch, is_next))
        if epoch == 1 or is_next:
            lower = Path(shutil.copytree(folder, f"{folder}-lower"))
            assert_resumed(lower, 1)
            assert_same_run(lower, short if epoch == 1 else whole)
        assert_resumed(folder, 2)
        assert_same_run(folder, whole)
    assert seen == (
        {(1, False), (1, True)} if start == "resumed" else {(1, False), (1, True), (2, True), (2, False)}
    )


def assert_resumed(run: Path, epochs: int) -> None:
    assert run_train("--resume", str(run), f"--train.epochs={epochs}") == 0


def test_a_reader_beside_a_run_that_replaces_its_best_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is renamed after the reader has seen its first name."""
    one, run = tmp_path / "one", tmp_path / "run"
    train(one, 1)
    train(run, 2)
    (run / "results.json").unlink()
    folder = RunFolder.open(run)
    folder.metrics.rewrite(folder.metrics.read_epochs())
    os.replace(run / "best.safetensors", folder.next_best_path)
    shutil.copy(one / "best.safetensors", run / "best.safetensors")
    looks = []

    def is_best(path: Path, state: TrainState) -> bool:
        looks.append(path.name)
        found = real(path, state)
        if len(looks) == 1:
            folder.settle_best(state)
        return found

    real = runs_folder.is_best
    monkeypatch.setattr(runs_folder, "is_best", is_best)
    assert load_run(run, None, torch.device("cpu")).state.epoch == 2
    assert looks[0] == "best.safetensors" and "best.next.safetensors" in looks


def test_a_mixed_folder_is_refused(tmp_path: Path) -> None:
    """best.safetensors of one run beside last.safetensors of another, at the same epochs."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, 1)
    assert run_train(*options(tmp_path, "two", *SMALL, "--train.epochs=1", "--train.seed=1")) == 0
    shutil.copy(two / "best.safetensors", one / "best.safetensors")
    for which in (None, "best"):
        with pytest.raises(RunError, match=r"not the best checkpoint that last.safetensors names"):
            load_run(one, which, torch.device("cpu"))
    (one / "last.safetensors").unlink()
    with pytest.raises(RunError, match=r"not the checkpoint that results.json was computed from"):
        load_run(one, None, torch.device("cpu"))
    assert json.loads((one / "results.json").read_text())["checkpoint"] == "best"
