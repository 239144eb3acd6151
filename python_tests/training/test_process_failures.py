"""Runs in several processes that are stopped, killed, restarted or resumed, also with another number."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from python_tests.support.processes import ROOT, run_commands, start, wait
from python_tests.support.runs import assert_same_tensors, options, run_train
from recgrela import evaluate
from recgrela.runs.folder import RunFolder

SURE = ["--model.dropout=0", "--model.drop_path=0", "--train.pieces=4"]
ENDLESS = ["--train.epochs=100000", "--train.save_minutes=0"]


def command(output: Path, name: str, *more: str) -> list[str]:
    return ["train", *options(output, name, *more)]


def assert_close_weights(first: Path, second: Path) -> None:
    """Asserts that two checkpoints have the same weights up to rounding."""
    one, two = load_file(first), load_file(second)
    for name in (name for name in one if name.startswith("model/")):
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-5)


def exit_codes(results: list[subprocess.CompletedProcess[str]]) -> list[int]:
    return [result.returncode for result in results]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs in two processes: whole; cut and resumed; without dropout, cut; sharded."""
    output = tmp_path_factory.mktemp("runs")
    resume = ["train", "--resume", str(output / "cut"), "--train.max_steps=null"]
    commands = [
        command(output, "whole"),
        command(output, "cut", "--train.max_steps=11"),
        resume,
        command(output, "sure", *SURE, "--train.max_steps=11"),
        command(output, "sharded", *SURE, "--train.shard_items=true"),
        ["evaluate", str(output / "whole"), "--device=cpu"],
        ["evaluate", str(output / "sharded"), "--device=cpu"],
    ]
    for rank, result in enumerate(run_commands(2, commands)):
        assert result.returncode == 0, result.stderr
        (output / f"{rank}.txt").write_text(result.stdout)
    return output


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(output: Path) -> None:
    """With dropout: every process continues its own random numbers."""
    for name in ("last.safetensors", "best.safetensors"):
        assert_same_tensors(output / "whole" / name, output / "cut" / name)
    state = load_file(output / "whole" / "last.safetensors")
    assert not torch.equal(state["rng/cpu"], state["rng/1/cpu"])


@pytest.mark.parametrize("world", [1, 3])
def test_a_run_resumes_with_another_number_of_processes(output: Path, tmp_path: Path, world: int) -> None:
    assert run_train(*options(tmp_path, "one", *SURE)) == 0
    run = Path(shutil.copytree(output / "sure", tmp_path / "sure"))
    argv = ["--resume", str(run), "--train.max_steps=null"]
    if world == 1:
        assert run_train(*argv) == 0
    else:
        assert exit_codes(run_commands(world, [["train", *argv]])) == [0] * world
    assert_close_weights(tmp_path / "one" / "last.safetensors", run / "last.safetensors")
    resumed = RunFolder.open(run).read_protocol()["resumed"]
    assert [(entry["processes"], entry["pieces"]) for entry in resumed] == [(world, 4)]


@pytest.mark.parametrize("name", ["whole", "sharded"])
def test_evaluation_repeats_the_table(output: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one process, of a run whose table was divided over two, and in two processes."""
    capsys.readouterr()
    assert evaluate.main([str(output / name), "--device=cpu"]) == 0
    alone = capsys.readouterr().out
    assert alone.strip() in (output / "0.txt").read_text()
    assert "│" not in (output / "1.txt").read_text()  # only the first process prints


def test_a_signal_to_one_process_stops_all_with_a_checkpoint(tmp_path: Path) -> None:
    started = start(2, [sys.executable, "-m", "recgrela.train", *options(tmp_path, "run", *ENDLESS)])
    wait_for(tmp_path / "run" / "last.safetensors")
    started[1].send_signal(signal.SIGTERM)
    results = wait(started)
    assert exit_codes(results) == [128 + signal.SIGTERM] * 2, results
    assert "stopped by SIGTERM" in results[0].stdout and not results[1].stdout
    assert not any(result.stderr for result in results)


def test_a_killed_process_ends_the_others_in_one_line(tmp_path: Path) -> None:
    started = start(2, [sys.executable, "-m", "recgrela.train", *options(tmp_path, "run", *ENDLESS)])
    wait_for(tmp_path / "run" / "last.safetensors")
    started[1].kill()
    first, _ = wait(started)
    assert first.returncode == 2
    message = first.stderr.splitlines()[-1]
    assert message.startswith("error: lost the connection to another process")
    # The folder that is left can be resumed.
    assert run_train("--resume", str(tmp_path / "run"), "--train.epochs=1", "--train.max_steps=1") == 0


def test_bad_data_is_reported_once(tmp_path: Path) -> None:
    results = run_commands(2, [command(tmp_path, "run", f"--data.path={tmp_path / 'none.csv'}")])
    assert exit_codes(results) == [1, 1]
    assert "none.csv: no such file" in results[0].stderr
    assert not results[1].stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--train.lr=1e-$((RANK + 2))", "train.lr: 0.001 in process 1, but 0.01 in process 0"),
        (
            "--train.if_exists=$(test $RANK = 0 && echo error || echo resume)",
            "train.if_exists: 'resume' in process 1, but 'error' in process 0",
        ),
    ],
)
def test_different_settings_are_refused(tmp_path: Path, option: str, message: str) -> None:
    train = shlex.join([sys.executable, "-m", "recgrela.train", *options(tmp_path, "run")])
    results = wait(start(2, ["sh", "-c", f"exec {train} {option}"]))
    assert exit_codes(results) == [2, 2]
    assert f"error: {message}" in results[0].stderr


def test_torchrun_restarts_from_the_last_checkpoint(output: Path, tmp_path: Path) -> None:
    argv = options(tmp_path, "run", "--train.save_minutes=0")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    script = ROOT / "python_tests" / "support" / "dying_train.py"
    last = tmp_path / "run" / "last.safetensors"
    command = [sys.executable, "-m", *torchrun, str(script), str(last), *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stdout
    assert_same_tensors(output / "whole" / "last.safetensors", last)


def test_restarts_need_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert run_train(f"--train.output={tmp_path}") == 2
    assert "give --train.name" in capsys.readouterr().err


def test_if_exists_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of a batch system that starts a job again."""
    argv = options(tmp_path, "run", "--train.if_exists=resume")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("")  # ended before its first checkpoint
    assert run_train(*argv, "--train.max_steps=3") == 0
    assert run_train(*argv) == 0
    assert "resuming" in capsys.readouterr().out
    assert run_train(*options(tmp_path, "whole")) == 0
    assert_same_tensors(tmp_path / "whole" / "last.safetensors", folder / "last.safetensors")
    assert run_train(*argv, "--train.lr=1e-2") == 2
    assert "--train.lr: a resumed run keeps its settings" in capsys.readouterr().err
    assert run_train(*options(tmp_path, "run")) == 2
    assert "the name is taken" in capsys.readouterr().err


def wait_for(path: Path) -> None:
    """Waits until a file exists."""
    deadline = time.monotonic() + 400
    while not path.is_file():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.05)
