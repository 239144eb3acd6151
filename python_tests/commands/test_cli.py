"""Exit codes and messages of the commands, and that an error leaves nothing behind."""

from __future__ import annotations

import errno
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from python_tests.support.runs import options, run_train
from recgrela import evaluate, recommend, train
from recgrela.settings import command_line
from recgrela.system.suggest import near_miss


@pytest.fixture
def run(finished_run: Path) -> Path:
    return finished_run


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train.lrr=3"], "unknown option --train.lrr; did you mean '--train.lr'?"),
        (["--train.device=gpu"], "device 'gpu' is not one of auto, cpu, cuda, cuda:N; did you mean 'cuda'?"),
        (["--train.device=cuda:99"], "device 'cuda:99'"),
        (["--model.mode=bidirectional"], "a causal model for 'all' (--model.mode causal)"),
        (["--train.output="], "train.output: '' is not a path"),
        (["--data.path="], "data.path: "),
        (["--data.path=~nobody-of-this-name/x.csv"], "data.path: ~nobody-of-this-name/x.csv: "),
        (["--config="], "--config: '' is not a path"),
        (["--resume="], "--resume: '' is not a path"),
        (["--data.path=nowhere.csv"], "nowhere.csv"),
        (["--data.min_item_events=100000"], "synthetic"),
        (["--config=nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--resume=nowhere"], "nowhere: no such run folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert run_train(*options(tmp_path / "runs", "bad", *argv)) == 2
    assert message in error_of(capsys)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_without_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run_train(*options(tmp_path / "runs", "bad", "--train.tensorboard=on")) == 2
    assert "the package tensorboard is not installed" in error_of(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_never_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    assert run_train(*options(run.parent, "run")) == 2
    assert "the name is taken" in error_of(capsys)
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


def test_unnamed_runs_never_collide(tmp_path: Path) -> None:
    argv = [option for option in options(tmp_path, "x", "--train.max_steps=1") if "train.name" not in option]
    for _ in range(3):
        assert run_train(*argv) == 0
    names = [folder.name for folder in tmp_path.iterdir()]
    assert len(names) == 3 and all(name.startswith("synthetic-causal-modified-2") for name in names)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train.lr=0.1"], "--train.lr: a resumed run keeps its settings (here 0.001)"),
        (["--model.hidden_size=32"], "--model.hidden_size: a resumed run keeps its settings (here 16)"),
        (["--data.order=recbole"], "--data.order: a resumed run keeps"),
        (["--train.epoch=3"], "unknown option --train.epoch; did you mean '--train.epochs'?"),
        (["--preset=paper"], "--preset cannot be given with --resume"),
        (["--config=a.yaml"], "--config cannot be given with --resume"),
    ],
)
def test_settings_that_a_resumed_run_must_keep(
    run: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    assert run_train(f"--resume={run}", *argv) == 2
    assert message in error_of(capsys)
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


@pytest.mark.parametrize("command", [train.main, evaluate.main, recommend.main])
def test_not_a_run_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: object
) -> None:
    assert callable(command)
    more = ["--items=1"] if command is recommend.main else []
    first = [f"--resume={tmp_path}"] if command is train.main else [str(tmp_path)]
    assert command([*first, *more]) == 2
    assert "not a run folder: config.yaml and protocol.json and items.parquet missing" in error_of(capsys)
    wrong = str(run.parent / "ruun")
    assert command([f"--resume={wrong}" if command is train.main else wrong, *more]) == 2
    assert "no such run folder; did you mean 'run'?" in error_of(capsys)


def test_a_file_or_an_empty_path_is_not_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run / "best.safetensors")]) == 2
    message = error_of(capsys)
    assert "best.safetensors: is a file, not a run folder; give the folder" in message
    assert "did you mean" not in message
    assert evaluate.main([""]) == 2
    assert "RUN: '' is not a path" in error_of(capsys)


def test_a_folder_that_cannot_be_listed_gives_no_suggestion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> object:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "iterdir", refused)
    assert evaluate.main([str(tmp_path / "run")]) == 2
    assert error_of(capsys).endswith(": no such run folder\n")
    assert run_train(f"--config={tmp_path / 'a.yaml'}") == 2
    assert error_of(capsys).endswith("no such file\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a.csv"), "error: a.csv: Permission denied"),
        (OSError("odd"), "error: odd"),
        (MemoryError(), "error: out of memory while running this command; give smaller sizes"),
        (torch.OutOfMemoryError("CUDA out"), "error: out of memory while running this command; give"),
    ],
)
def test_errors_of_the_system_are_one_line(
    capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    def command(argv: object) -> int:
        raise error

    assert command_line.run(command, []) == 2
    assert error_of(capsys).startswith(line)


def test_bugs_keep_their_traceback() -> None:
    def command(argv: object) -> int:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        command_line.run(command, [])


def test_a_run_without_a_checkpoint_cannot_be_resumed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.yaml", "protocol.json", "items.parquet"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    assert run_train(f"--resume={tmp_path}") == 2
    assert "last.safetensors is missing" in error_of(capsys)


@pytest.mark.parametrize(
    ("command", "argv", "message"),
    [
        (evaluate.main, ["--splt=test"], "unknown option --splt; did you mean '--split'?"),
        (
            evaluate.main,
            ["--split=tst"],
            "split: 'tst' is not one of both, valid, test; did you mean 'test'?",
        ),
        (evaluate.main, ["--batch_size=0"], "batch_size: 0 is below 1"),
        (recommend.main, [], "give one of --user, --users, --items, --histories, --all"),
        (recommend.main, ["--user=1", "--items=1"], "give one of --user"),
        (recommend.main, ["--all", "--format=parquet"], "--format parquet needs --output FILE"),
        (recommend.main, ["--items=,"], "--items: no id is given"),
        (recommend.main, ["--items=nothing"], "item 'nothing' is not among the model's"),
        (recommend.main, ["--user=nobody"], "user 'nobody' is not in the data"),
        (recommend.main, ["--items=1", "--k=0"], "k: 0 is below 1"),
        (recommend.main, ["--items=1", "--seen=yes"], "--seen"),
        (evaluate.main, ["--batch_size=9999999999"], "batch_size: 9999999999 is above 2147483647"),
        (evaluate.main, ["--threads=1025"], "threads: 1025 is above 1024"),
    ],
)
def test_wrong_options_of_the_other_commands(
    run: Path, capsys: pytest.CaptureFixture[str], command: object, argv: list[str], message: str
) -> None:
    assert callable(command)
    assert command([str(run), *argv]) == 2
    assert message in error_of(capsys)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("train", "--train.lr"),
        ("evaluate", "--checkpoint"),
        ("protocols", "--orders"),
        ("recommend", "--items"),
        ("compare", "--seeds"),
        ("items", "--retire"),
    ],
)
@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")
def test_the_commands_run_as_modules(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, option: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["", "--help"])
    with pytest.raises(SystemExit, match=r"\A0\Z"):
        runpy.run_module(f"recgrela.{command}", run_name="__main__")
    out = capsys.readouterr().out
    assert f"usage: python -m recgrela.{command} " in out and option in out


def test_a_process_reports_an_error_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "recgrela.train", "--train.lrr=1"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown option --train.lrr; did you mean '--train.lr'?\n"


def test_near_misses() -> None:
    assert near_miss("epocs", ["epochs", "lr"]) == "; did you mean 'epochs'?"
    assert near_miss("CAUSAL", ["causal"]) == "; did you mean 'causal'?"
    assert near_miss("zzz", ["epochs"]) == near_miss("", ["epochs"]) == ""
