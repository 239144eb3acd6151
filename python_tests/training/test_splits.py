"""Training, evaluating, resuming, recommending and comparing with splits by time and by files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.csv
import pytest

from python_tests.compare.comparison import REQUESTED, start, table
from python_tests.support.processes import run_commands
from python_tests.support.runs import assert_same_tensors, edit_protocol, make_run, options, run_train
from recgrela import evaluate, protocols, recommend
from recgrela.compare.__main__ import main as compare
from recgrela.data import DataConfig, EvalBatches
from recgrela.data.__main__ import main as convert
from recgrela.data.synthetic import generate
from recgrela.inference.recommender import Recommender
from recgrela.runs.folder import RunFolder
from recgrela.runs.ranks import read_ranks
from recgrela.runs.saved import load_data

SPLITS = {
    "time": ["--data.split=time", "--data.split_date=2017-07-30", "--data.split_targets=all"],
    "random": ["--data.split=time", "--data.split_quantile=0.8", "--data.split_targets=random"],
    "files": ["--data.split=files"],
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """CSV files: all events, and three parts of them that overlap in time and have users of their own."""
    config, folder = DataConfig(), tmp_path_factory.mktemp("sources")
    events = generate(config.synthetic_seed, 60, 40, 20)
    lines = [
        f"user {user},item {item},{time}"
        for user, item, time in zip(events.users, events.items, events.times, strict=True)
    ]
    parts = {
        "all": lines,
        "train": [line for line in lines if int(line.split(",")[0][5:]) < 50 and hash_of(line) < 7],
        "valid": [line for line in lines if int(line.split(",")[0][5:]) < 50 and hash_of(line) >= 7],
        "test": [line for line in lines if int(line.split(",")[0][5:]) >= 50],
    }
    for name, part in parts.items():
        (folder / f"{name}.csv").write_text("\n".join(["user_id,item_id,timestamp", *part]) + "\n")
    return {name: str(folder / f"{name}.csv") for name in parts}


def hash_of(line: str) -> int:
    return sum(line.encode()) % 10


def of_split(sources: dict[str, str], split: str) -> list[str]:
    """The options of a split of the sources."""
    if split != "files":
        return [f"--data.path={sources['all']}", *SPLITS[split]]
    paths = {"path": "train", "valid_path": "valid", "test_path": "test"}
    return [*SPLITS[split], *(f"--data.{key}={sources[name]}" for key, name in paths.items())]


@pytest.fixture(scope="module", params=list(SPLITS))
def run(
    request: pytest.FixtureRequest, sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run with a split."""
    return make_run(tmp_path_factory.mktemp("runs"), request.param, *of_split(sources, request.param))


def test_ranks_are_those_of_the_histories(run: Path) -> None:
    """The ranks of a run against the scores of every history, by the Recommender."""
    recommender = Recommender.load(run)
    assert recommender.run is not None
    data, names = load_data(recommender.run), recommender.item_ids
    facts = RunFolder.open(run).read_protocol()["data"]["split"]
    assert facts == data.description["split"] and facts["split"] == run.name.replace("random", "time")
    for split in ("valid", "test"):
        batches = EvalBatches(data, split, 50, 1000)
        (batch,) = batches
        histories = [
            [data.item_ids[item] for item in batch.items[begin:end].tolist()]
            for begin, end in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)
        ]
        scores = recommender.score(histories, names)
        target = np.array([names.index(data.item_ids[item]) for item in batch.target.tolist()])
        expected = (scores >= scores[np.arange(len(target)), target][:, None] - 1e-5).sum(1)
        ranks = read_ranks(RunFolder.open(run).ranks_path, split)
        assert np.array_equal(ranks.users, batches.users) and len(ranks.users) == facts[split]["targets"]
        assert np.array_equal(ranks.unmasked, expected)


def test_a_run_resumes_with_the_same_split(
    run: Path, sources: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = make_run(tmp_path, "copy", *of_split(sources, run.name), "--train.max_steps=5")
    assert run_train("--resume", str(copy), "--data.split_targets=first") == 2
    assert "data.split_targets" in capsys.readouterr().err
    assert run_train("--resume", str(copy), "--train.max_steps=null") == 0
    assert_same_tensors(copy / "last.safetensors", run / "last.safetensors")
    out = capsys.readouterr().out
    assert evaluate.main([str(copy)]) == 0
    assert len(capsys.readouterr().out) > 0 and "resuming" in out
    edit_protocol(copy, lambda content: content["data"]["split"]["test"].update(targets=3))
    for command in (lambda: evaluate.main([str(copy)]), lambda: run_train("--resume", str(copy))):
        assert command() == 2
        assert "the split differs from that of this run: test is" in capsys.readouterr().err


def test_protocol_says_the_split(run: Path) -> None:
    content = RunFolder.open(run).read_protocol()
    words, facts = content["split"], content["data"]["split"]
    assert content["evaluation"]["users"] == "all with a target"
    assert content["training"]["targets_per_epoch"] == facts["train"]["targets"]
    if run.name == "files":
        assert words.startswith("by files: ") and "test_from" not in facts
    elif run.name == "time":
        assert facts["test_from_date"] == "2017-07-30T00:00:00+00:00" and facts["test_from"] == 1501372800
        assert "on are valid, events from 2017-07-30T00:00:00+00:00 on test; targets: every one of" in words
    else:
        assert "; targets: a random one of a user's held-out events" in words


def test_recommendations_follow_all_events(
    run: Path, sources: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is held out from the histories of users."""
    histories = Recommender.load(run).histories
    events = pyarrow.csv.read_csv(sources["all"])
    users = events["user_id"].to_pylist()
    assert len(histories) == 60
    for user, length, skipped in zip(
        histories.users, histories.lengths, histories.skipped_items, strict=True
    ):
        assert length + skipped == users.count(user)
    output = tmp_path / "out.csv"
    assert recommend.main([str(run), "--all", "--format", "csv", "--output", str(output)]) == 0
    assert len(set(pyarrow.csv.read_csv(output)["user"].to_pylist())) == 60


def test_packed_runs_are_equal(run: Path, sources: dict[str, str], tmp_path: Path) -> None:
    given = of_split(sources, run.name)
    (source,) = (option.partition("=")[2] for option in given if option.startswith("--data.path="))
    rest = [option for option in given if not option.startswith("--data.path=")]
    assert convert(["convert", source, str(tmp_path / "packed"), *rest]) == 0
    packed = [option for option in rest if "_path=" not in option]
    other = make_run(tmp_path, "packed-run", *packed, f"--data.path={tmp_path / 'packed'}")
    assert_same_tensors(other / "last.safetensors", run / "last.safetensors")
    results = [RunFolder.open(path).read_results() for path in (run, other)]
    assert results[0]["test"] == results[1]["test"]
    assert evaluate.main([str(other), f"--data.path={source}", *(o for o in rest if "_path=" in o)]) == 0


def test_two_processes(sources: dict[str, str], tmp_path: Path) -> None:
    sure = [
        "--train.max_steps=4",
        "--train.pieces=2",
        "--model.dropout=0",
        "--model.drop_path=0",
        "--train.eval_batch_size=7",
    ]
    commands = [
        ["train", *options(tmp_path, f"two {split}", *of_split(sources, split), *sure)] for split in SPLITS
    ]
    for result in run_commands(2, commands):
        assert result.returncode == 0, result.stderr
    for split in SPLITS:
        one = make_run(tmp_path, f"one {split}", *of_split(sources, split), *sure)
        ours, theirs = (RunFolder.open(path).read_results() for path in (one, tmp_path / f"two {split}"))
        assert ours["test"] == theirs["test"] and ours["valid"] == theirs["valid"]


@pytest.mark.parametrize("split", list(SPLITS))
def test_comparison(
    sources: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.setattr("recgrela.compare.runner.subprocess.Popen", start)
    small = ["--train.epochs=1", "--train.max_steps=3", "--seeds=1"]
    argv = [option for option in REQUESTED if option not in ("--seeds", "1", "2")]
    assert compare([*argv, *small, *of_split(sources, split), "--out", str(tmp_path / "out")]) == 0
    assert len(table(tmp_path / "out")) >= 2
    (first, *_) = sorted((tmp_path / "out" / "runs").glob("*/*"))
    assert RunFolder.open(first).read_protocol()["data"]["split"]["split"] in split.replace("random", "time")


def test_a_table_of_events(sources: dict[str, str], tmp_path: Path) -> None:
    """Recommender.fit with a table and a split."""
    events = pyarrow.csv.read_csv(sources["all"])
    settings = {
        "data.split": "time",
        "data.split_targets": "first",
        "model.num_layers": 1,
        "model.hidden_size": 16,
        "model.num_heads": 2,
        "train.max_steps": 2,
        "train.output": str(tmp_path),
        "train.name": "fitted",
        "train.tensorboard": "off",
        "train.device": "cpu",
    }
    fitted = Recommender.fit(events, settings)
    assert fitted.run is not None
    facts = fitted.run.folder.read_protocol()["data"]["split"]
    assert facts["split_targets"] == "first" and facts["test"]["targets"] > 0
    held_out = {"data.split": "files", "data.valid_path": sources["valid"], "data.test_path": sources["test"]}
    fitted = Recommender.fit(
        pyarrow.csv.read_csv(sources["train"]),
        {**settings, **held_out, "data.split_targets": "last", "train.name": "files"},
    )
    assert len(fitted.histories) == 60  # with the users of test


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--data.split=time", "--data.split_date=2030-01-01"], "has no event at or after it; give a time"),
        (["--data.split=time", "--data.split_date=soon"], "'soon' is neither an ISO date"),
        (["--data.split=time", "--data.split_quantile=1"], "data.split_quantile: 1.0 is not below 1"),
        (["--data.split=files"], "data.valid_path: missing; data.split files needs"),
        (["--data.test_path=x"], "data.test_path: has no effect with data.split leave_one_out"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line(
    sources: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    expected: str,
) -> None:
    assert run_train(*options(tmp_path, "run", f"--data.path={sources['all']}", *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not (tmp_path / "run").exists()


def test_a_run_on_several_files_that_have_moved(
    sources: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands take several paths, as training does."""
    moved = [sources["train"], sources["test"]]
    paths = [shutil.copy(path, tmp_path / f"{number}.csv") for number, path in enumerate(moved)]
    run = make_run(tmp_path, "several", "--data.path", *map(str, paths))
    for path in paths:
        Path(path).unlink()
    for main, words in ((evaluate.main, []), (protocols.main, ["--orders=time,item"])):
        assert main([str(run), "--device=cpu", *words, "--data.path", *moved]) == 0
        assert main([str(run), "--device=cpu", *words, "--data.path", *moved[:1]]) == 2
    assert "not the data of this run" in capsys.readouterr().err
    assert recommend.main([str(run), "--device=cpu", "--all", "--format=csv", "--events", *moved]) == 0
    users = {line.split(",")[0] for line in capsys.readouterr().out.splitlines()[1:]}
    assert len(users) == 60
