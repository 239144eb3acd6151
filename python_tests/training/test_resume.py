"""Runs that are stopped, interrupted or damaged, and resumed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from python_tests.support.gpu import NO_GPU
from python_tests.support.graphs import fake_graphs
from python_tests.support.runs import assert_same_tensors, make_run, options, run_train
from recgrela.evaluation.ranking import Ranker
from recgrela.runs import checkpoint
from recgrela.runs.folder import RunFolder

GPU = [pytest.mark.gpu, pytest.mark.skipif(NO_GPU, reason="needs a GPU")]
ALL = ["--train.objective=all"]
LAST = ["--train.objective=last", "--train.batch_size=100"]
ATTEND = [*LAST, "--model.mode=bidirectional", "--model.padding=attend"]
SCHEDULE = ["--train.lr_decay=cosine", "--train.warmup_steps=5", "--train.lr=1e-2"]


@pytest.fixture
def whole(finished_run: Path) -> Path:
    """An uninterrupted run of two epochs of eight steps."""
    return finished_run


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a learning-rate schedule."""
    return make_run(tmp_path_factory.mktemp("runs"), "scheduled", *SCHEDULE)


def records(run: Path) -> list[dict]:
    return RunFolder.open(run).metrics.read()


def exact_part(record: dict) -> dict:
    """The part of a record that a resumed run repeats exactly: all but times and memory."""
    free = ("loss_curve", "peak_memory")
    return {key: value for key, value in record.items() if "second" not in key and key not in free}


@pytest.mark.parametrize("steps", [3, 8, 11, 16])
def test_max_steps_and_resume_give_the_same_bits(whole: Path, tmp_path: Path, steps: int) -> None:
    run = make_run(tmp_path, "cut", f"--train.max_steps={steps}")
    *before, final = records(run)
    assert final["reason"] == ("2 epochs done" if steps > 16 else f"{steps} steps done")
    if steps % 8:  # inside an epoch, which is evaluated too
        assert (before[-1]["kind"], before[-1]["step"]) == ("partial", steps)
        assert checkpoint.read_meta(run / "last.safetensors")["state"]["step"] == steps % 8
    assert run_train("--resume", str(run), "--train.max_steps", "null") == 0
    for name in ("last.safetensors", "best.safetensors"):
        assert_same_tensors(whole / name, run / name)
    assert [exact_part(r) for r in records(run)[:-1]] == [exact_part(r) for r in records(whole)[:-1]]
    for split in ("valid", "test"):
        assert records(run)[-1][split] == records(whole)[-1][split]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize("objective", [ALL, LAST, ATTEND], ids=["all", "last", "attend"])
def test_resumed_steps_have_the_same_bits_with_graphs(
    objective: list[str], device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other steps are captured in a resumed run: its first ones and the first of each size are not."""
    graphs = fake_graphs(monkeypatch) if device == "cpu" else []
    more = [*objective, f"--train.device={device}", "--model.drop_path=0.2", "--train.eval_batch_size=25"]
    whole = make_run(tmp_path, "whole", *more)
    cut = make_run(tmp_path, "cut", *more, "--train.max_steps=11")
    assert run_train("--resume", str(cut), "--train.max_steps", "null") == 0
    for name in ("last.safetensors", "best.safetensors"):
        assert_same_tensors(whole / name, cut / name)
    assert [exact_part(r) for r in records(cut)[:-1]] == [exact_part(r) for r in records(whole)[:-1]]
    for split in ("valid", "test"):
        assert records(cut)[-1][split] == records(whole)[-1][split]
    assert all(graph.replays >= graph.captures > 0 for graph in graphs)
    assert len({graph.replays for graph in graphs}) > 1 or not graphs


@pytest.mark.parametrize("steps", [3, 11])
def test_a_resumed_run_continues_its_schedule(scheduled: Path, tmp_path: Path, steps: int) -> None:
    cut = make_run(tmp_path, "cut", *SCHEDULE, f"--train.max_steps={steps}")
    assert run_train("--resume", str(cut), "--train.max_steps", "null") == 0
    assert_same_tensors(scheduled / "last.safetensors", cut / "last.safetensors")


def test_more_epochs_begin_a_new_schedule(
    scheduled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Path(shutil.copytree(scheduled, tmp_path / "whole"))
    cut = Path(shutil.copytree(scheduled, tmp_path / "cut"))
    assert run_train("--resume", str(whole), "--train.epochs=3") == 0
    said = "new schedule from step 16 on: the learning rate rises from 0 to 0.01 over 5 steps and decays"
    assert f"{said} (cosine) to zero at the end of epoch 3" in " ".join(capsys.readouterr().out.split())
    (entry,) = json.loads((whole / "protocol.json").read_text())["resumed"]
    assert entry["schedule"] == {"epochs": 3, "step": 16, "epoch": 2.0, "lr": 0.0}
    assert [record["step"] for record in records(whole)[:-1]] == [8, 16, 24]
    # An extended run can be stopped and resumed too, and needs no option then.
    assert run_train("--resume", str(cut), "--train.epochs=3", "--train.max_steps=19") == 0
    assert run_train("--resume", str(cut), "--train.max_steps=null") == 0
    assert_same_tensors(whole / "last.safetensors", cut / "last.safetensors")
    assert "schedule" not in json.loads((cut / "protocol.json").read_text())["resumed"][1]
    # The epochs can grow again, but not shrink.
    before = {file.name: file.read_bytes() for file in cut.iterdir() if file.is_file()}
    assert run_train("--resume", str(cut), "--train.epochs=2") == 2
    assert "train.epochs: 2 is below the 3 epochs over which" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in cut.iterdir() if file.is_file()} == before


def test_an_unfinished_run_is_extended_from_its_learning_rate(tmp_path: Path) -> None:
    cut = make_run(tmp_path, "cut", *SCHEDULE, "--train.max_steps=11")
    assert run_train("--resume", str(cut), "--train.epochs=3", "--train.max_steps=12") == 0
    (entry,) = json.loads((cut / "protocol.json").read_text())["resumed"]
    assert entry["schedule"]["step"] == 11 and entry["schedule"]["epoch"] == 1 + 3 / 8
    assert 0 < entry["schedule"]["lr"] < 1e-2
    assert run_train("--resume", str(cut), "--train.epochs=4", "--train.max_steps=null") == 0
    assert len(records(cut)[:-1]) == 4
    first, second = json.loads((cut / "protocol.json").read_text())["resumed"]
    assert (first, second["schedule"]["step"], second["schedule"]["epochs"]) == (entry, 12, 4)


def test_a_new_schedule_begins_with_the_first_step(scheduled: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(scheduled, tmp_path / "run"))
    assert run_train("--resume", str(run), "--train.epochs=3", "--train.max_steps=16") == 0
    assert run_train("--resume", str(run), "--train.max_steps=null") == 0
    first, second = json.loads((run / "protocol.json").read_text())["resumed"]
    assert "schedule" not in first and second["schedule"]["step"] == 16
    assert [record["step"] for record in records(run)[:-1]] == [8, 16, 24]


def test_an_extension_that_is_killed_early_begins_again(scheduled: Path, tmp_path: Path) -> None:
    """The process is killed after config.yaml is written and before protocol.json."""
    whole = Path(shutil.copytree(scheduled, tmp_path / "whole"))
    cut = Path(shutil.copytree(scheduled, tmp_path / "cut"))
    assert run_train("--resume", str(whole), "--train.epochs=3") == 0
    config = cut / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 3"))
    assert run_train("--resume", str(cut)) == 0
    assert_same_tensors(whole / "last.safetensors", cut / "last.safetensors")


def test_a_run_stopped_by_sigterm_can_be_resumed(tmp_path: Path) -> None:
    more = ["--data.synthetic_users=300", "--data.max_len=15", "--train.batch_size=60", "--train.epochs=2"]
    run = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-m", "recgrela.train", *options(tmp_path, "stopped", *more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (run / "items.parquet").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # an epoch takes longer
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, out + err
    assert "stopped by SIGTERM" in out
    assert f"python -m recgrela.train --resume {run}" in out
    state = checkpoint.read_meta(run / "last.safetensors")["state"]
    assert state["step"] > 0, "the signal did not arrive inside an epoch"
    assert not (run / "results.json").exists()

    assert run_train("--resume", str(run)) == 0
    uninterrupted = make_run(tmp_path, "uninterrupted", *more)
    for name in ("last.safetensors", "best.safetensors"):
        assert_same_tensors(uninterrupted / name, run / name)
    assert [exact_part(r) for r in records(run)] == [exact_part(r) for r in records(uninterrupted)]


def test_a_signal_while_ranking_loses_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Ctrl-C during the validation of epoch 1, then during the final test with the best weights."""
    rank, calls, before = Ranker.__call__, [], signal.default_int_handler
    inherited = signal.signal(signal.SIGINT, before)  # background jobs of a shell ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, inherited))

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) in (1, 4):  # valid 1 | valid 1, valid 2, final valid
            os.kill(os.getpid(), signal.SIGINT)
        return rank(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Ranker, "__call__", interrupted)
    run = tmp_path / "run"
    assert run_train(*options(tmp_path, "run")) == 130
    state = checkpoint.read_meta(run / "last.safetensors")["state"]
    assert (state["epoch"], state["step"]) == (0, 8)
    assert run_train("--resume", str(run)) == 130
    assert_same_tensors(whole / "last.safetensors", run / "last.safetensors")
    assert run_train("--resume", str(run)) == 0
    assert_same_tensors(whole / "best.safetensors", run / "best.safetensors")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_disk_that_fills_up_loses_one_epoch_at_most(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full after the record of epoch 2 is written and before its checkpoint."""
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "last.safetensors" and len(records(run)) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    run = tmp_path / "run"
    monkeypatch.setattr(os, "replace", full)
    assert run_train(*options(tmp_path, "run")) == 2
    assert "no space left on the disk; the previous file is unchanged" in capsys.readouterr().err
    assert checkpoint.read_meta(run / "last.safetensors")["state"]["epoch"] == 1
    assert len(records(run)) == 2
    monkeypatch.undo()
    assert run_train("--resume", str(run)) == 0
    assert_same_tensors(whole / "last.safetensors", run / "last.safetensors")
    assert [exact_part(r) for r in records(run)] == [exact_part(r) for r in records(whole)]


def test_more_epochs_than_planned(whole: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, "short", "--train.epochs=1")
    assert run_train("--resume", str(run)) == 0  # nothing to train: only the final test is repeated
    assert run_train("--resume", str(run), "--train.epochs", "2") == 0
    assert_same_tensors(whole / "last.safetensors", run / "last.safetensors")
    assert "epochs: 2" in (run / "config.yaml").read_text()
    first, second = json.loads((run / "protocol.json").read_text())["resumed"]
    assert (first["step"], first["epochs"], second["step"], second["epochs"]) == (8, 1, 8, 2)
    assert {"time", "patience", "device", "threads", "torch", "cpu_kernels"} <= second.keys()


def test_a_resumed_run_warns_of_different_rounding(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    assert run_train("--resume", str(run)) == 0
    assert "rounding may differ" not in capsys.readouterr().out
    folder = RunFolder.open(run)
    protocol = folder.read_protocol()
    protocol["versions"]["torch"] = "0.1"
    folder.write_json(folder.protocol_path, protocol)
    assert run_train("--resume", str(run)) == 0
    assert "rounding may differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("best.safetensors", None, "best.safetensors is missing"),
        ("best.safetensors", lambda text: text[:-100], "not a checkpoint, or damaged"),
        ("metrics.jsonl", None, "2 epochs between 1 and 2 are missing"),
        ("metrics.jsonl", lambda text: text.split(b"\n", 1)[1], "1 epochs between 1 and 1 are missing"),
        (
            "protocol.json",
            lambda text: text.replace(b'"machine"', b'"m"'),
            "protocol.json: damaged: its content does not have its checksum",
        ),
        (
            "config.yaml",
            lambda text: text.replace(b"order: time", b"order: recbole"),
            "data.order is 'recbole'",
        ),
        ("config.yaml", lambda text: text.replace(b"dropout: 0.1", b"dropout: 0.2"), "model.dropout is 0.2"),
    ],
)
def test_a_run_that_cannot_be_resumed_is_unchanged(
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[bytes], bytes] | None,
    message: str,
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    if damage is None:
        (run / name).unlink()
    else:
        text = (run / name).read_bytes()
        (run / name).write_bytes(damage(text))
        assert (run / name).read_bytes() != text
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    assert run_train("--resume", str(run), "--train.epochs=3") == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


def test_the_record_of_an_epoch_is_flushed_before_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, replace, done = os.fsync, os.replace, []

    def noted(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        done.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", renamed)
    make_run(tmp_path, "run", "--train.epochs=1")
    names = ("best.next.safetensors", "metrics.jsonl", "last.safetensors", "best.safetensors", "results.json")
    assert sorted(done.index(name) for name in names) == [done.index(name) for name in names]
