"""recgrela.evaluate on a finished run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import torch

from python_tests.support.runs import edit_protocol
from recgrela import evaluate
from recgrela.data import EvalBatches
from recgrela.evaluation.ranking import Ranker
from recgrela.runs.consistency import check_data
from recgrela.runs.folder import RunFolder
from recgrela.runs.items import read_items
from recgrela.runs.saved import evaluate as evaluate_run
from recgrela.runs.saved import load_data, load_run
from recgrela.system.errors import RunError

CPU = torch.device("cpu")


@pytest.fixture
def run(finished_run: Path) -> Path:
    return finished_run


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_evaluate_repeats_the_final_table(run: Path) -> None:
    saved = load_run(run, None, CPU)
    rankings = evaluate_run(saved, load_data(saved), batch_size=7)
    results = json.loads((run / "results.json").read_text())
    for split in ("valid", "test"):
        now, then = rankings[split].as_dict(), results[split]
        assert now["unmasked"] == pytest.approx(then["unmasked"], abs=1e-12)
        assert now["masked"] == pytest.approx(then["masked"], abs=1e-12)
        assert now["users"] == then["users"] == 60


def test_the_command_prints_both_rankings(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((file.name, file.stat().st_mtime_ns) for file in run.iterdir())
    assert evaluate.main([str(run), "--split", "test", "--checkpoint", "last", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "last.safetensors (after epoch 2, step 16)" in out
    assert "ranked" in out and "removed" in out and "valid" not in out
    assert sorted((file.name, file.stat().st_mtime_ns) for file in run.iterdir()) == before


def test_other_cutoffs_and_a_table_of_targets(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table's metrics are those of the command, and its ids those of the data."""
    tables = []
    for name in ("targets.parquet", "targets.csv"):
        file = tmp_path / name
        assert evaluate.main([str(run), "--cutoffs=1,20", f"--per_user={file}", "--device=cpu"]) == 0
        out = capsys.readouterr().out
        assert "NDCG@20" in out and "coverage@1" in out and "HR@10" not in out and str(file) in out
        tables.append(pq.read_table(file) if file.suffix == ".parquet" else csv.read_csv(file))
    columns, as_csv = (table.to_pydict() for table in tables)
    assert as_csv["rank"] == columns["rank"] and list(map(str, as_csv["user"])) == columns["user"]
    saved = load_run(run, None, CPU)
    data = load_data(saved)
    rankings = evaluate_run(saved, data, cutoffs=(1, 20))
    for split, ends in (("valid", 2), ("test", 1)):
        rows = [i for i, name in enumerate(columns["split"]) if name == split]
        assert [columns["user"][i] for i in rows] == list(data.user_ids)
        targets = data.items[data.offsets[1:] - ends].tolist()
        assert [columns["item"][i] for i in rows] == [data.item_ids[item] for item in targets]
        for user, i in enumerate(rows):
            begin, end = data.offsets[user : user + 2].tolist()
            is_new = targets[user] not in data.items[begin : end - ends].tolist()
            assert columns["is_new"][i] == is_new == (columns["rank_seen_removed"][i] is not None)
        hits = sum(columns["rank"][i] <= 20 for i in rows) / len(rows)
        assert hits == pytest.approx(rankings[split].values["HR@20"])
    assert False in columns["is_new"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--cutoffs=5,x", "--cutoffs: '5,x' is not a list of numbers from 1 to 1000, as 5,10,20"),
        ("--cutoffs=0", "is not a list of numbers"),
        ("--cutoffs=10,5", "--cutoffs: '10,5' is not in increasing order without repeats"),
        ("--cutoffs=5,5", "is not in increasing order"),
        ("--per_user=targets.txt", "--per_user: targets.txt is not the name of a file that ends in .parquet"),
        ("--per_user=none/targets.csv", "--per_user: none: no such folder"),
    ],
)
def test_wrong_options(run: Path, capsys: pytest.CaptureFixture[str], option: str, message: str) -> None:
    assert evaluate.main([str(run), option]) == 2
    assert message in capsys.readouterr().err


def test_files_of_the_run_are_not_replaced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), f"--per_user={run / 'items.parquet'}", "--device=cpu"]) == 2
    assert "items.parquet is a file of the run; give another name" in capsys.readouterr().err


def test_other_data_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = copy / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("synthetic_seed: 0", "synthetic_seed: 1"))
    assert evaluate.main([str(copy)]) == 2
    assert "config.yaml: data.synthetic_seed is 1, but the run was started with 0" in capsys.readouterr().err
    edit_protocol(copy, lambda content: content["settings"].update({"data.synthetic_seed": 1}))
    assert evaluate.main([str(copy)]) == 2
    assert "synthetic: not the data of this run: its sha256 is" in capsys.readouterr().err
    changes = {"data.synthetic_seed": 0, "data.min_item_events": 30}
    edit_protocol(copy, lambda content: content["settings"].update(changes))
    config.write_text(text.replace("min_item_events: 5", "min_item_events: 30"))
    with pytest.raises(RunError, match="after filtering, but the run had"):
        load_data(load_run(copy, None, CPU))


def test_other_events_of_the_same_file_are_refused(copy: Path) -> None:
    saved = load_run(copy, None, CPU)
    data = load_data(saved)
    check_data(saved.folder, data)
    with pytest.raises(RunError, match="the events or their order differ from those of this run; restore"):
        check_data(saved.folder, replace(data, items=data.items.flip(0)))


def test_no_other_checkpoint_replaces_a_missing_one(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "best.safetensors").unlink()
    assert evaluate.main([str(copy)]) == 2
    assert "best.safetensors is missing; results.json was computed from it" in capsys.readouterr().err
    assert evaluate.main([str(copy), "--checkpoint=last"]) == 0
    (copy / "results.json").write_text('{"checkpoint": 3}')
    assert evaluate.main([str(copy)]) == 2
    assert "results.json: damaged: checkpoint is 3" in capsys.readouterr().err


def test_an_item_table_of_another_length(copy: Path) -> None:
    folder = load_run(copy, None, CPU).folder
    table = pq.read_table(folder.items_path)
    pq.write_table(table.slice(1), folder.items_path)
    with pytest.raises(RunError, match=rf"damaged: {len(table) - 1} items, but the run has {len(table)}"):
        read_items(folder.items_path, len(table))
    pq.write_table(table.drop_columns("title"), folder.items_path)
    with pytest.raises(RunError, match="expected the text columns"):
        read_items(folder.items_path, len(table))


def test_an_item_table_of_an_earlier_version(copy: Path) -> None:
    path = RunFolder.open(copy).items_path
    table = pq.read_table(path)
    now = read_items(path, len(table))
    pq.write_table(table.drop_columns("retired").replace_schema_metadata(None), path)
    assert read_items(path, len(table)) == now
    assert now.retired.shape == (len(table),) and not now.retired.any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\n{}\n", "damaged: line 1 is not JSON"),
        (b"3\n", "damaged: line 1 is not an object"),
        (b'{"kind": "epoch"}\n', "damaged: line 1 is not a record"),
    ],
)
def test_damaged_metrics(copy: Path, content: bytes, message: str) -> None:
    folder = RunFolder.open(copy)
    folder.metrics.path.write_bytes(content)
    with pytest.raises(RunError, match=message):
        folder.metrics.read()


@pytest.mark.parametrize("key", ["sha256", "packed_sha256", "items"])
def test_wrong_types_in_the_protocol(copy: Path, key: str) -> None:
    edit_protocol(copy, lambda content: content["data"].update({key: [1]}))
    with pytest.raises(RunError, match=rf"protocol.json: damaged: data.{key} is \[1\]"):
        load_run(copy, None, CPU)


def test_another_model_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("hidden_size: 16", "hidden_size: 32"))
    assert evaluate.main([str(copy)]) == 2
    assert "model.hidden_size is 32, but the run was started with 16" in capsys.readouterr().err

    def change(content: dict[str, Any]) -> None:
        content["settings"]["model.hidden_size"] = content["model"]["hidden_size"] = 32

    edit_protocol(copy, change)
    assert evaluate.main([str(copy)]) == 2
    assert "a checkpoint of RecGRELA with other settings: hidden_size 16 (here 32)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.yaml", "not a run folder: config.yaml missing"),
        ("protocol.json", "not a run folder: protocol.json missing"),
        ("best.safetensors", "best.safetensors is missing"),
    ],
)
def test_a_missing_file_is_named(
    copy: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    (copy / name).unlink()
    assert evaluate.main([str(copy), "--checkpoint", "best"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("protocol.json", "{", "protocol.json: damaged"),
        ("protocol.json", "{}", "the section 'data' is missing"),
        ("config.yaml", "train: {lrr: 1}", "unknown key train.lrr"),
        ("results.json", "[]", "results.json: damaged"),
        ("best.safetensors", "nonsense", "not a checkpoint, or damaged"),
    ],
)
def test_a_damaged_file_is_named(
    copy: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, message: str
) -> None:
    (copy / name).write_text(content)
    assert evaluate.main([str(copy)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize("training", [True, False])
def test_ranking_restores_the_models_mode(run: Path, training: bool) -> None:
    saved = load_run(run, None, CPU)
    batches = EvalBatches(load_data(saved), "valid", 50, 32)
    saved.model.train(training)
    ranker = Ranker(saved.model, batches, 100)
    first = ranker(batches)
    assert saved.model.training is training
    assert ranker(batches) == first  # without dropout
