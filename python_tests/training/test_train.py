"""Training runs: their files, their numbers, early stopping and progress."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from python_tests.support.graphs import fake_graphs
from python_tests.support.runs import assert_same_tensors, make_run, options, run_train
from recgrela.evaluation.metrics import metrics_of
from recgrela.models import CONFIGS, SequenceModel
from recgrela.runs.folder import RunFolder
from recgrela.runs.metrics_file import MetricsFile
from recgrela.runs.ranks import read_ranks
from recgrela.runs.saved import load_run
from recgrela.runs.state import TrainState
from recgrela.settings.run import read_run
from recgrela.settings.train import TrainConfig, metric_names
from recgrela.system.errors import ConfigError
from recgrela.training import session, trainer

FILES = ["config.yaml", "protocol.json", "items.parquet", "metrics.jsonl", "curves.png", "results.json"]
FILES += ["best.safetensors", "last.safetensors", "ranks.safetensors"]


@pytest.fixture
def whole(finished_run: Path) -> Path:
    """An uninterrupted run of two epochs of eight steps."""
    return finished_run


def records(run: Path) -> list[dict]:
    return RunFolder.open(run).metrics.read()


@pytest.mark.parametrize("graphs", ["auto", "true"])
def test_a_run_without_cuda_graphs_says_why_once(
    graphs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_graphs(monkeypatch, "its GRU runs in cuDNN")
    code = run_train(*options(tmp_path, "run", "--train.max_steps=4", f"--train.cuda_graphs={graphs}"))
    out, err = capsys.readouterr()
    if graphs == "true":
        assert code == 2 and not (tmp_path / "run").exists()
        assert "train.cuda_graphs: true is not possible: its GRU runs in cuDNN; or use auto" in err
    else:
        assert code == 0
        assert out.count("note: steps run without CUDA graphs: its GRU runs in cuDNN\n") == 1


def test_the_files_of_a_run(whole: Path) -> None:
    assert sorted(file.name for file in whole.iterdir()) == sorted(FILES)
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    *epochs, final = records(whole)
    assert [record["epoch"] for record in epochs] == [1, 2]
    assert [record["step"] for record in epochs] == [8, 16]
    for record in epochs:
        assert record["loss"] == pytest.approx(record["loss_sum"] / 8)
        assert set(record["valid"]["unmasked"]) == set(record["valid"]["masked"]) == set(metric_names())
        assert record["seconds"] > 0 and record["targets_per_second"] > 0
        assert record["peak_memory"] >= 0
    assert epochs[0]["loss"] > epochs[1]["loss"] > 0
    results = RunFolder.open(whole).read_results()
    assert {key: value for key, value in final.items() if key != "kind"} == results
    best = max(epochs, key=lambda record: (round(record["valid"]["unmasked"]["NDCG@10"], 4), record["epoch"]))
    assert results["epoch"] == best["epoch"]
    lists = results["valid"].pop("lists")  # not computed in every epoch
    assert results["valid"] == best["valid"]
    assert 0 < lists["unmasked"]["coverage@5"] <= lists["unmasked"]["coverage@10"] <= 1
    for split in ("valid", "test"):
        ranks = read_ranks(RunFolder.open(whole).ranks_path, split)
        assert ranks.users.tolist() == list(range(60))
        for kind in ("unmasked", "masked"):
            means = metrics_of(torch.from_numpy(getattr(ranks, kind))).mean(0).tolist()
            assert means == pytest.approx([results[split][kind][name] for name in metric_names()])


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


def test_cutoffs_and_the_metric_of_early_stopping(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run", "--train.cutoffs=3,20", "--train.metric=MRR@20", "--train.epochs=3")
    *epochs, final = records(run)
    names = set(metric_names((3, 20)))
    assert all(set(values) == names for values in (final["test"]["masked"], epochs[0]["valid"]["unmasked"]))
    scores = [round(record["valid"]["unmasked"]["MRR@20"], 4) for record in epochs]
    assert scores[final["epoch"] - 1] == max(scores)
    protocol = RunFolder.open(run).read_protocol()
    assert protocol["evaluation"]["cutoffs"] == [3, 20]
    assert "valid MRR@20 (unmasked)" in protocol["training"]["early_stopping"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--train.metric=NDCG@20",
            "train.metric: 'NDCG@20' is not one of HR@5, NDCG@5, MRR@5, HR@10, NDCG@10",
        ),
        ("--train.cutoffs=5,20", "train.metric: 'NDCG@10' is not one of HR@5, NDCG@5, MRR@5, HR@20"),
        ("--train.cutoffs=5;10", "train.cutoffs: '5;10' is not a list of numbers"),
    ],
)
def test_the_metric_must_have_a_cutoff(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_run([option], CONFIGS)


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


@pytest.mark.parametrize("loss", ["sampled_softmax", "gbce"])
def test_training_with_sampled_losses(tmp_path: Path, loss: str) -> None:
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


def test_diverged_weights_end_training_and_keep_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss is still finite when a weight that no batch has used becomes infinite."""
    append = MetricsFile.append

    def spoil(metrics: MetricsFile, record: dict[str, Any]) -> None:
        append(metrics, record)
        if record["epoch"] == 2:
            with torch.no_grad():
                models[0].item_embedding.weight[0, 0] = torch.inf

    models: list[SequenceModel] = []
    real = session.build
    monkeypatch.setattr(session, "build", lambda *arguments: models.append(real(*arguments)) or models[0])
    monkeypatch.setattr(MetricsFile, "append", spoil)
    assert run_train(*options(tmp_path, "run")) == 2
    err = capsys.readouterr().err
    assert "training diverged: model/item_embedding.weight has NaN or infinite values at step 16" in err
    assert "has earlier checkpoints (best and last)" in err and err.count("\n") == 1
    assert load_run(tmp_path / "run", "last", torch.device("cpu")).state.epoch == 1
    assert load_run(tmp_path / "run", "best", torch.device("cpu")).state.epoch == 1
    monkeypatch.undo()
    assert run_train("--resume", str(tmp_path / "run")) == 0
