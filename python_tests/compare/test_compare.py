"""The table and files of a comparison, and the folder that belongs to it."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from python_tests.compare.comparison import LABELS, REQUESTED, SEEDS, files, folders, table
from python_tests.support.runs import edit_protocol
from recgrela import evaluate
from recgrela.compare import runner
from recgrela.compare.__main__ import main
from recgrela.compare.options import parse_args
from recgrela.compare.plan import make_plan
from recgrela.compare.rows import make_rows
from recgrela.evaluation.baselines import TRIVIAL_MODELS
from recgrela.settings.train import TrainConfig, metric_names


def test_the_table_is_the_runs_own_numbers(whole: Path) -> None:
    lines, made = table(whole), folders(whole)
    assert list(lines) == [*TRIVIAL_MODELS, *LABELS]
    for label in LABELS:
        line = lines[label]
        finals = [made[label, seed].metrics.read()[-1]["test"]["unmasked"] for seed in SEEDS]
        for name in metric_names():
            values = [final[name] for final in finals]
            assert float(line[name]) == pytest.approx(statistics.mean(values), abs=1e-12)
            assert float(line[f"{name} sd"]) == pytest.approx(np.std(values, ddof=1), abs=1e-12)
            assert float(line[f"{name} low"]) <= float(line[name]) <= float(line[f"{name} high"])
        records = [record for seed in SEEDS for record in made[label, seed].metrics.read_epochs()]
        assert float(line["epoch_seconds"]) == statistics.median(r["seconds"] for r in records)
        assert int(line["peak_memory"]) == max(r["peak_memory"] for r in records)
        assert line["epochs"] == "2 2" and line["seeds"] == "1 2" and line["failed_seeds"] == ""
        best = [made[label, seed].read_json(made[label, seed].results_path)["epoch"] for seed in SEEDS]
        assert line["best_epochs"] == " ".join(map(str, best))
        assert (line["model"], line["objective"]) == ("RecGRELA", "all")
    assert lines["RecGRELA"]["p NDCG@10"] == "" and 0 < float(lines["narrow"]["p NDCG@10"]) <= 1
    for column in ("parameters", "flops", "flops_scores"):
        assert int(lines["RecGRELA"][column]) > int(lines["narrow"][column]) > 0


def test_the_files_of_a_comparison(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == sorted(
        [".lock", "bubbles.png", "comparison.yaml", "runs", "table.csv", "table.md"]
    )
    assert (whole / "bubbles.png").read_bytes().startswith(b"\x89PNG")
    rows = [line.split(" | ") for line in (whole / "table.md").read_text().splitlines()[4:]]
    lines = table(whole)
    quality = rows[: len(lines)]
    for column, name in enumerate(metric_names(), 1):
        means = [f"{float(line[name]):.4f}" for line in lines.values()]
        best, second = sorted(set(means), reverse=True)[:2]
        for cells, mean in zip(quality, means, strict=True):
            marked = f"**{mean}**" if mean == best else f"<u>{mean}</u>" if mean == second else mean
            line = lines[cells[0].strip("| ")]
            low, high = (float(line[f"{name} {end}"]) for end in ("low", "high"))
            sd = f" ± {float(line[f'{name} sd']):.4f}" if line[f"{name} sd"] else ""
            assert cells[column] == f"{marked}{sd}<br>({low:.4f}, {high:.4f})"


def test_recommended_items_have_a_line_for_each_variant(whole: Path) -> None:
    text = (whole / "table.md").read_text().partition("Recommended items:")[2].partition("Cost:")[0]
    head, _, *rows = [line.strip("| ").split(" | ") for line in text.strip().splitlines()]
    lines = table(whole)
    assert [row[:2] for row in rows] == [[label, seen] for label in lines for seen in ("ranked", "removed")]
    for label, seen, *cells in rows:
        for name, cell in zip(head[2:], cells, strict=True):
            value = float(lines[label][name if seen == "ranked" else f"removed {name}"])
            assert cell == (f"{value:.4f}" if name.startswith("coverage") else f"{value:,.1f}")


def test_a_run_of_a_comparison_is_a_run(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folders(whole)["narrow", 2]
    assert evaluate.main([str(run.path), "--split=test"]) == 0
    expected = run.read_json(run.results_path)["test"]["unmasked"]["NDCG@10"]
    assert f"{expected:.4f}" in capsys.readouterr().out
    assert run.read_protocol()["seeds"]["train"] == 2


@pytest.mark.usefixtures("no_training")
def test_nothing_is_repeated(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(copied)
    assert main([*REQUESTED, f"--out={copied}"]) == 0
    assert capsys.readouterr().out.count("already finished") == 4
    after = files(copied)
    assert {path: text for path, (_, text) in after.items()} == {p: text for p, (_, text) in before.items()}
    in_runs = [path for path in before if "runs" in path.relative_to(copied).parts]
    assert len(in_runs) == 4 * 9
    assert all(after[path] == before[path] for path in in_runs)
    assert main([f"--config={copied / 'comparison.yaml'}", f"--out={copied}"]) == 0
    assert {path: text for path, (_, text) in files(copied).items()} == {p: t for p, (_, t) in after.items()}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--train.lr=0.5"], "comparison.yaml: train.lr is 0.01, but 0.5 is requested"),
        (["--train.epochs=3"], "comparison.yaml: train.epochs is 2"),
        (["--train.objective=last"], "comparison.yaml: train.objective is 'auto'"),
        (["--train.threads=2"], "comparison.yaml: train.threads is 1"),
        (["--data.synthetic_seed=4"], "comparison.yaml: data.synthetic_seed is 0"),
        (["--model.narrow.num_layers=1"], "comparison.yaml: model.narrow.num_layers is 2"),
    ],
)
def test_another_comparison_in_the_folder_is_an_error(
    whole: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    before = files(whole)
    assert main([*REQUESTED, *more, f"--out={whole}"]) == 2
    err = capsys.readouterr().err
    assert message in err and "another --out" in err and err.count("\n") == 1
    assert files(whole) == before


@pytest.mark.usefixtures("no_training")
def test_a_run_with_other_settings_or_data_is_an_error(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "comparison.yaml").unlink()
    assert main([*REQUESTED, f"--out={copied}"]) == 2
    assert "not empty, and not a comparison" in capsys.readouterr().err
    only_seeds = {"seeds": [1, 2]}
    (copied / "comparison.yaml").write_text(yaml.safe_dump(only_seeds))
    assert main([*REQUESTED, "--train.lr=0.5", f"--out={copied}"]) == 2
    assert "runs/RecGRELA/1/config.yaml: train.lr is 0.01, but 0.5 is requested" in capsys.readouterr().err
    edit_protocol(
        folders(copied)["narrow", 1].path, lambda content: content["data"].update(packed_sha256="0" * 64)
    )
    assert main([*REQUESTED, f"--out={copied}"]) == 2
    assert "the events or their order differ from those of this run" in capsys.readouterr().err
    folders(copied)["RecGRELA", 1].ranks_path.unlink()
    folders(copied)["RecGRELA", 1].checkpoint_path("last").unlink()
    assert main([*REQUESTED, f"--out={copied}"]) == 2
    assert "has results, but neither ranks.safetensors nor a last checkpoint" in capsys.readouterr().err


@pytest.mark.usefixtures("no_training")
def test_a_run_that_lost_a_file_is_an_error(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folders(copied)["narrow", 2]
    for name in ("config.yaml", "protocol.json", "items.parquet", "metrics.jsonl"):
        content = (run.path / name).read_bytes()
        (run.path / name).unlink()
        assert main([*REQUESTED, f"--out={copied}"]) == 2
        err = capsys.readouterr().err
        assert str(run.path) in err and name in err and err.count("\n") == 1
        (run.path / name).write_bytes(content)
    # An interrupted run without its last checkpoint is not removed and trained again.
    for path in (run.results_path, run.ranks_path, run.checkpoint_path("last")):
        path.unlink()
    assert main([*REQUESTED, f"--out={copied}"]) == 2
    assert "last.safetensors is missing, so the run cannot continue" in capsys.readouterr().err
    assert run.checkpoint_path("best").is_file()


@pytest.mark.usefixtures("no_training")
def test_runs_that_ranked_different_users_cannot_be_compared(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folders(copied)["narrow", 2].ranks_path
    arrays = load_file(path)
    save_file(arrays | {"test/users": arrays["test/users"][::-1].copy()}, path)
    assert main([*REQUESTED, f"--out={copied}"]) == 2
    assert "the users or their order differ from those of" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:100])
    assert main([*REQUESTED, f"--out={copied}"]) == 2
    assert "ranks.safetensors: not a file of ranks, or damaged" in capsys.readouterr().err


def test_a_comparison_without_a_finished_run_is_a_table_of_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.Runner, "make", lambda self, run: "out of memory")
    assert main([*REQUESTED, f"--out={tmp_path / 'out'}"]) == 1
    lines = table(tmp_path / "out")
    assert {lines[label]["NDCG@10"] for label in LABELS} == {""}
    assert all(float(lines[name]["NDCG@10"]) >= 0 for name in TRIVIAL_MODELS)
    assert (tmp_path / "out" / "table.md").read_text().count(": out of memory") == 4
    assert not (tmp_path / "out" / "bubbles.png").exists()


def test_no_p_value_without_a_run_of_the_first_model(copied: Path) -> None:
    contenders = make_plan(parse_args([*REQUESTED, f"--out={copied}"])).contenders
    failures = {("RecGRELA", 1): "why", ("RecGRELA", 2): "why"}
    first, second = make_rows(contenders, failures, {}, TrainConfig())
    assert not first.quality and first.failures == {1: "why", 2: "why"}
    assert second.quality["ranked"].p_value is None
