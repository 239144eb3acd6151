from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from python_tests.support.runs import assert_same_tensors, make_run, options, run_train
from recgrela.evaluation.metrics import NAMES, metrics_of
from recgrela.models import CONFIGS
from recgrela.runs import checkpoint
from recgrela.runs.folder import RunFolder
from recgrela.runs.ranks import read_ranks
from recgrela.runs.state import TrainState
from recgrela.settings.run import read_run
from recgrela.settings.train import TrainConfig
from recgrela.training import final_test, trainer

SCHEDULE = ["--train.lr_decay=cosine", "--train.warmup_steps=5", "--train.lr=1e-2"]
FILES = ["config.yaml", "protocol.json", "items.parquet", "metrics.jsonl", "curves.png", "results.json"]
FILES += ["best.safetensors", "last.safetensors", "ranks.safetensors"]


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


def test_the_files_of_a_run(whole: Path) -> None:
    assert sorted(file.name for file in whole.iterdir()) == sorted(FILES)
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    *epochs, final = records(whole)
    assert [record["epoch"] for record in epochs] == [1, 2]
    assert [record["step"] for record in epochs] == [8, 16]
    for record in epochs:
        assert record["loss"] == pytest.approx(record["loss_sum"] / 8)
        assert set(record["valid"]["unmasked"]) == set(record["valid"]["masked"]) == set(NAMES)
        assert record["seconds"] > 0 and record["targets_per_second"] > 0
        assert record["peak_memory"] >= 0
    assert epochs[0]["loss"] > epochs[1]["loss"] > 0
    results = json.loads((whole / "results.json").read_text())
    assert {key: value for key, value in final.items() if key != "kind"} == results
    best = max(epochs, key=lambda record: (round(record["valid"]["unmasked"]["NDCG@10"], 4), record["epoch"]))
    assert results["epoch"] == best["epoch"]
    assert results["valid"] == best["valid"]
    for split in ("valid", "test"):
        ranks = read_ranks(RunFolder.open(whole).ranks_path, split)
        assert ranks.users.tolist() == list(range(60))
        for kind in ("unmasked", "masked"):
            means = metrics_of(torch.from_numpy(getattr(ranks, kind))).mean(0).tolist()
            assert means == pytest.approx([results[split][kind][name] for name in NAMES])


def test_the_protocol_is_written(whole: Path) -> None:
    protocol = json.loads((whole / "protocol.json").read_text())
    data = protocol["data"]
    assert len(data["sha256"]) == 64
    assert (data["source"], data["order"], data["users"]) == ("synthetic", "time", 61)
    assert data["filter"]["min_user_events"] == 5
    assert protocol["max_len"] == 50
    assert len(data["packed_sha256"]) == 64
    assert (protocol["model"]["num_layers"], protocol["settings"]["train.batch_size"]) == (2, 128)
    assert protocol["changed_from_preset"]["model.num_layers"] == 2
    assert "train.output" not in protocol["changed_from_preset"]
    assert "train.epochs" not in protocol["settings"]
    assert protocol["seeds"]["train"] == 2020
    assert protocol["versions"]["torch"] == torch.__version__
    assert protocol["versions"]["numpy"] == np.__version__
    assert {"recgrela", "python"} <= protocol["versions"].keys()
    assert (protocol["machine"]["device"], protocol["machine"]["threads"]) == ("cpu", 1)
    assert {"split", "training", "evaluation"} <= protocol.keys()
    assert {"ranking", "masking", "ties", "metrics"} <= protocol["evaluation"].keys()


def test_the_same_seed_gives_the_same_weights(whole: Path, tmp_path: Path) -> None:
    again = make_run(tmp_path, "again")
    assert_same_tensors(whole / "last.safetensors", again / "last.safetensors")
    assert (whole / "results.json").read_text() == (again / "results.json").read_text()
    other = make_run(tmp_path, "other", "--train.seed=1")
    with pytest.raises(AssertionError, match="differ"):
        assert_same_tensors(whole / "last.safetensors", other / "last.safetensors")


def test_the_objective_last_trains_too(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        "paper",
        "--preset=paper",
        "--train.batch_size=128",
        "--train.epochs=1",
        "--train.amp=true",
    )
    first, final = records(run)
    assert first["samples"] == first["targets"] > 500
    assert final["test"]["users"] == 60


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


@pytest.mark.parametrize("steps", [3, 11])
def test_a_resumed_run_continues_its_schedule(scheduled: Path, tmp_path: Path, steps: int) -> None:
    cut = make_run(tmp_path, "cut", *SCHEDULE, f"--train.max_steps={steps}")
    assert run_train("--resume", str(cut), "--train.max_steps", "null") == 0
    assert_same_tensors(scheduled / "last.safetensors", cut / "last.safetensors")


def test_a_falling_learning_rate_fixes_the_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "run", "--train.lr_decay=linear")
    assert run_train("--resume", str(run), "--train.epochs=3") == 2
    assert "--train.epochs: a resumed run keeps its settings (here 2)" in capsys.readouterr().err
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 3"))
    assert run_train("--resume", str(run)) == 2
    assert "train.epochs is 3, but the run was started with 2" in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["sampled_softmax", "gbce"])
def test_losses_of_sampled_negatives_train(tmp_path: Path, loss: str) -> None:
    run = make_run(tmp_path, loss, f"--train.loss={loss}", "--train.negatives=16", "--train.lr=1e-2")
    first, second, _ = records(run)
    assert first["loss"] > second["loss"] > 0
    again = make_run(tmp_path, "cut", f"--train.loss={loss}", "--train.negatives=16", "--train.lr=1e-2",
                     "--train.max_steps=5")  # fmt: skip
    assert run_train("--resume", str(again), "--train.max_steps", "null") == 0
    assert_same_tensors(run / "last.safetensors", again / "last.safetensors")
    said = json.loads((run / "protocol.json").read_text())["training"]["loss"]
    assert "16 negatives" in said


def test_longer_histories_in_evaluation(tmp_path: Path) -> None:
    """Longer histories change the ranking, not the training."""
    more = ["--data.max_len=5", "--train.lr=3e-2"]
    short, long = (
        make_run(tmp_path, "short", *more),
        make_run(tmp_path, "long", *more, "--data.eval_max_len=50"),
    )
    assert_same_tensors(short / "last.safetensors", long / "last.safetensors")
    one, other = (records(run)[0]["valid"] for run in (short, long))
    assert one != other
    assert json.loads((long / "protocol.json").read_text())["eval_max_len"] == 50


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
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during the validation of epoch 1, then during the final test with the best weights."""
    rank_all, calls, before = trainer.rank_all, [], signal.getsignal(signal.SIGINT)

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) in (1, 4):  # valid 1 | valid 1, valid 2, final valid
            os.kill(os.getpid(), signal.SIGINT)
        return rank_all(*arguments)  # type: ignore[arg-type]

    for module in (trainer, final_test):
        monkeypatch.setattr(module, "rank_all", interrupted)
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
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if "last.safetensors" in os.readlink(f"/proc/self/fd/{descriptor}") and len(records(run)) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    run = tmp_path / "run"
    monkeypatch.setattr(os, "fsync", full)
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
    protocol = json.loads((run / "protocol.json").read_text())
    protocol["versions"]["torch"] = "0.1"
    (run / "protocol.json").write_text(json.dumps(protocol))
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
            "the section 'machine' is missing",
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
    fsync, flushed = os.fsync, []

    def noted(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    make_run(tmp_path, "run", "--train.epochs=1")
    assert flushed.index("metrics.jsonl") < flushed.index(".last.safetensors.tmp")


def test_divergence_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(*options(tmp_path, "wild", "--train.lr=1e30")) == 2
    err = capsys.readouterr().err
    assert "training diverged" in err and "has no checkpoint" in err
    assert not (tmp_path / "wild" / "last.safetensors").exists()


def test_early_stopping_rule() -> None:
    config = TrainConfig(epochs=100, patience=2)
    state = TrainState()
    seen = []
    for score in (0.1, 0.2, 0.19996, 0.2, 0.1, 0.19994, 0.1):
        assert state.reason_to_stop(config) is None
        state.finish_epoch(score)
        seen.append((state.best_epoch, state.stale_epochs))
    # 0.19996 rounds to 0.2, an equal score, which counts; 0.19994 rounds to 0.1999
    assert seen == [(1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (4, 2), (4, 3)]
    assert state.reason_to_stop(config) == "no improvement in 3 epochs"
    assert state.reason_to_stop(TrainConfig(epochs=100, patience=3)) is None


def test_early_stopping_in_a_run(tmp_path: Path) -> None:
    still = make_run(tmp_path, "still", "--train.lr=1e-30", "--train.patience=0", "--train.epochs=4")
    assert records(still)[-1]["reason"] == "4 epochs done"  # an equal score is an improvement
    assert records(still)[-1]["epoch"] == 4
    worse = make_run(tmp_path, "worse", "--train.lr=0.5", "--train.patience=1", "--train.epochs=40")
    *epochs, final = records(worse)
    assert final["reason"] == "no improvement in 2 epochs"
    assert len(epochs) == final["epoch"] + 2 < 40
    assert [epoch["improved"] for epoch in epochs[-3:]] == [True, False, False]


def test_a_bar_on_a_terminal_and_lines_elsewhere(tmp_path: Path) -> None:
    for terminal in (True, False):
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=120)
        config = read_run(options(tmp_path, f"terminal-{terminal}", "--train.log_every=1"), CONFIGS)
        threads = torch.get_num_threads()
        result = trainer.train(config, console=console)
        torch.set_num_threads(threads)
        assert result.rankings is not None
        assert ("━━━━━━━━" in text.getvalue() and "\x1b[" in text.getvalue()) is terminal
        assert "targets/s" in text.getvalue()
        assert "epoch 2/2  loss" in text.getvalue()
        assert "NDCG@10" in text.getvalue()


def test_tensorboard_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = make_run(tmp_path, "board", "--train.tensorboard=on", "--train.epochs=1")
    (events,) = (run / "tensorboard").iterdir()
    assert events.name.startswith("events.out.tfevents")


def test_a_batch_in_parts_gives_the_same_weights(tmp_path: Path) -> None:
    quiet = ["--model.dropout=0", "--model.drop_path=0", "--train.max_steps=5"]
    last = ["--train.objective=last", "--model.mode=bidirectional", "--model.padding=attend"]
    # 128 items in three parts; 128 sequences, padded to 50 items, in thirteen.
    for name, max_tokens, more in (("all", 60, []), ("last", 500, last)):
        whole = make_run(tmp_path, name, *quiet, *more)
        parts = make_run(tmp_path, f"{name}-parts", *quiet, *more, f"--train.max_tokens={max_tokens}")
        training = json.loads((parts / "protocol.json").read_text())["training"]
        assert training["max_tokens_a_pass"] == max_tokens
        assert records(parts)[0]["loss"] == pytest.approx(records(whole)[0]["loss"], rel=1e-5)
        one, two = (load_file(run / "last.safetensors") for run in (whole, parts))
        weights = [key for key in one if key.startswith("model/")]
        assert weights
        for key in weights:
            # Adam divides by the gradient's size: where the gradient is rounding noise, steps differ.
            assert (one[key] - two[key]).abs().mean() < 1e-5, key
