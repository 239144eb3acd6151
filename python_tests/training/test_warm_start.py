"""New runs that begin with the weights of another run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from python_tests.support.runs import DATA, PLAIN, TRAIN, assert_same_tensors, options, run_train
from recgrela.models import CONFIGS
from recgrela.runs.items import read_items
from recgrela.runs.saved import load_run
from recgrela.settings.run import read_run
from recgrela.training.session import open_session
from recgrela.training.warm_start import Start, warm_start

CPU = torch.device("cpu")
MORE = ["--data.synthetic_items=60", "--data.synthetic_users=80"]  # ids 1 .. 60, of which the run has 40


@pytest.fixture
def run(finished_run: Path) -> Path:
    return finished_run


def new_options(output: Path, name: str, *more: str) -> list[str]:
    """Options of a new run that takes its model settings from --init."""
    where = [f"--train.output={output}", f"--train.name={name}", "--train.epochs=1"]
    return [*DATA, *PLAIN, *TRAIN, *where, *more]


def test_a_new_run_on_data_with_more_items(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(*new_options(tmp_path, "warm", *MORE), f"--init={run}") == 0
    out = " ".join(capsys.readouterr().out.split())
    protocol = json.loads((tmp_path / "warm" / "protocol.json").read_text())
    record = protocol["init"]
    assert record["parent"]["run"] == str(run.resolve())
    assert record["parent"]["sha256"] == hashlib.sha256((run / "best.safetensors").read_bytes()).hexdigest()
    counts = record["items"]
    assert counts["matched"] + counts["new"] == protocol["data"]["items"] - 1
    assert counts["matched"] + counts["dropped"] == 40
    assert counts["matched"] > 0 and counts["new"] > 0 and record["new_items"] == "model"
    assert f"{counts['matched']} items of both runs, {counts['new']} new ones" in out
    assert protocol["model"] == json.loads((run / "protocol.json").read_text())["model"]


@pytest.mark.parametrize("how", ["model", "mean", "titles"])
def test_items_are_matched_by_their_ids(run: Path, tmp_path: Path, how: str) -> None:
    parent = load_run(run, None, CPU)
    theirs = read_items(parent.folder.items_path, parent.model.n_items)
    ids = {token: item for item, token in enumerate(theirs.tokens)}
    config = read_run(new_options(tmp_path, "x", *MORE), CONFIGS, parent.folder.config_path)
    session = open_session(config)
    fresh = {name: value.clone() for name, value in session.model.state_dict().items()}
    generator = torch.get_rng_state()
    found = warm_start(session, Start(run, how))
    assert torch.equal(torch.get_rng_state(), generator)
    table, old = session.model.item_embedding.weight, parent.model.item_embedding.weight
    known = [item for item, token in enumerate(session.data.item_ids) if token in ids]
    new = sorted(set(range(session.data.n_items)) - set(known))
    assert 0 in known and new
    assert torch.equal(table[known], old[[ids[session.data.item_ids[item]] for item in known]])
    own = fresh["item_embedding.weight"][new]
    if how == "model":
        assert torch.equal(table[new], own)
    else:
        assert not torch.equal(table[new], own)
        same = len({tuple(row) for row in table[new].tolist()}) == 1
        assert same == (how == "mean")
    before = parent.model.state_dict()
    for name, value in session.model.state_dict().items():
        if name != "item_embedding.weight":
            assert torch.equal(value, before[name]), name
    assert found.items.tokens == session.data.item_ids and not np.any(found.items.retired)


def test_a_warm_start_is_resumed_without_its_parent(run: Path, tmp_path: Path) -> None:
    assert run_train(*options(tmp_path, "whole"), f"--init={run}") == 0
    parent = tmp_path / "parent"
    parent.symlink_to(run)
    assert run_train(*options(tmp_path, "cut", "--train.max_steps=11"), f"--init={parent}") == 0
    parent.unlink()
    assert run_train("--resume", str(tmp_path / "cut"), "--train.max_steps=null") == 0
    for name in ("last.safetensors", "best.safetensors"):
        assert_same_tensors(tmp_path / "whole" / name, tmp_path / "cut" / name)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--init={run}", "--model.hidden_size=32"],
            "model.hidden_size: 32, but the weights are of a model",
        ),
        (["--init={run}", "--model.name=SASRec"], "model.name: SASRec, but --init is a run of RecGRELA"),
        (["--init={run}", "--resume={run}"], "--init cannot be given with --resume"),
        (["--init={run}x"], "no such run folder; did you mean 'run'?"),
        (["--init="], "--init: '' is not a path"),
        (["--init_items=mean"], "--init_items: needs --init"),
        (["--init={run}", "--init_items=random"], "init_items: 'random' is not one of model, mean, titles"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    words = [word.replace("{run}", str(run)) for word in argv]
    assert run_train(*new_options(tmp_path / "runs", "bad"), *words) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_data_without_the_runs_items(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"u{user},other{item},{user + item}" for user in range(8) for item in range(6)]
    (tmp_path / "other.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    argv = new_options(tmp_path / "runs", "bad", f"--data.path={tmp_path / 'other.csv'}")
    assert run_train(*argv, f"--init={run}") == 2
    assert f"--init: none of the 40 items of {run} is in {tmp_path / 'other.csv'}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_new_items_without_titles(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = read_items(run / "items.parquet", 41).tokens[1]
    names = [token, *(f"other{item}" for item in range(5))]
    rows = [f"u{user},{name},{user + place}" for user in range(8) for place, name in enumerate(names)]
    (tmp_path / "other.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    argv = new_options(tmp_path / "runs", "bad", f"--data.path={tmp_path / 'other.csv'}", f"--init={run}")
    assert run_train(*argv, "--init_items=titles") == 2
    assert "have no titles to compare with; give another --init_items" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert run_train(*argv, "--init_items=mean") == 0
