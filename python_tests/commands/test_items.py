"""recgrela.items on a finished run: items added, retired and restored."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from python_tests.support.runs import edit_protocol, options, run_train
from recgrela import Recommender, evaluate, items, recommend
from recgrela.evaluation.metrics import MISSED
from recgrela.runs.items import Items, read_items
from recgrela.runs.saved import evaluate as evaluate_run
from recgrela.runs.saved import load_data, load_run

CPU = torch.device("cpu")


@pytest.fixture
def run(finished_run: Path) -> Path:
    return finished_run


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def catalogue(folder: Path) -> Items:
    saved = load_run(folder, None, CPU)
    return read_items(saved.folder.items_path, saved.model.n_items)


def write(path: Path, *rows: str) -> str:
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def change(run: Path, out: Path, *argv: str) -> int:
    return items.main([str(run), "--out", str(out), *argv])


@pytest.fixture
def grown(run: Path, tmp_path: Path) -> Path:
    """The run with two more items, and two items retired."""
    old = catalogue(run)
    add = write(tmp_path / "new.csv", "item_id,title", f"new1,{old.titles[1]} again", f"new2,{old.titles[2]}")
    retire = write(tmp_path / "old.csv", "item_id", old.tokens[3], old.tokens[5])
    assert change(run, tmp_path / "grown", "--add", add, "--retire", retire) == 0
    return tmp_path / "grown"


def test_a_changed_catalogue(run: Path, grown: Path) -> None:
    before, after = catalogue(run), catalogue(grown)
    assert after.tokens == [*before.tokens, "new1", "new2"]
    assert after.titles == [*before.titles, f"{before.titles[1]} again", before.titles[2]]
    assert np.flatnonzero(after.retired).tolist() == [3, 5]
    assert sorted(content(grown)) == ["best.safetensors", "config.yaml", "items.parquet", "protocol.json"]
    old, new = load_file(run / "best.safetensors"), load_file(grown / "best.safetensors")
    assert old.keys() == new.keys()
    for name, value in new.items():
        kept = value[: len(before.tokens)] if name == "model/item_embedding.weight" else value
        assert torch.equal(kept, old[name]), name
    (entry,) = json.loads((grown / "protocol.json").read_text())["growth"]
    parent = entry["parent"]
    assert parent["sha256"] == hashlib.sha256((run / "best.safetensors").read_bytes()).hexdigest()
    assert (parent["run"], parent["checkpoint"]) == (str(run.resolve()), "best.safetensors")
    assert (entry["added"]["items"], entry["retired"]["items"]) == (2, 2)
    assert entry["added"]["sha256"] == hashlib.sha256((grown.parent / "new.csv").read_bytes()).hexdigest()
    assert (entry["items"], entry["retired_items"]) == (len(after.tokens), 2)
    assert "similar titles" in entry["new_rows"] and "restored" not in entry


def test_recommendations_from_a_changed_catalogue(
    run: Path, grown: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = Recommender.load(run, device="cpu"), Recommender.load(grown, device="cpu")
    n_items, tokens = before.model.n_items, before.catalogue.items.tokens
    history = [[tokens[item] for item in (3, 9, 4)]]  # 3 is retired, and its row is used
    old, new = (
        dict(zip(*(table[name].to_pylist() for name in ("item", "score")), strict=True))
        for table in (one.recommend(histories=history, k=1000) for one in (before, after))
    )
    assert new.keys() == old.keys() - {tokens[5]} | {"new1", "new2"}
    kept = old.keys() - {tokens[5]}
    assert [new[item] for item in kept] == pytest.approx([old[item] for item in kept])
    assert recommend.main([str(grown), "--items=new1", "--k=1000", "--device=cpu"]) == 0
    out = capsys.readouterr().out
    assert "new2" in out and f"│   {n_items - 2} │" in out  # all but padding, the history and two retired
    user = before.histories.users[7]
    assert recommend.main([str(grown), "--user", user, "--k=3", "--device=cpu"]) == 0


def test_the_parents_data_is_evaluated(run: Path, grown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = load_run(run, None, CPU), load_run(grown, None, CPU)
    data = load_data(after)
    old, new = evaluate_run(before, data)["test"].ranks, evaluate_run(after, data)["test"].ranks
    found = old < MISSED
    assert torch.equal(found, new < MISSED) and not torch.equal(new, old)
    assert torch.all(new >= old) and torch.all(new[found] - old[found] <= 2)
    assert evaluate.main([str(grown), "--device=cpu"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 that were added after training and are no targets, and 2 that are retired" in out
    assert evaluate.main([str(run), "--device=cpu"]) == 0
    assert "note:" not in capsys.readouterr().out


def test_a_changed_catalogue_changes_again(run: Path, grown: Path, tmp_path: Path) -> None:
    tokens = catalogue(run).tokens
    vectors = np.arange(32, dtype=np.float32).reshape(2, 16)
    add = write(tmp_path / "more.csv", "item_id", "new3", "new4")
    np.save(tmp_path / "more.npy", vectors)
    restore = write(tmp_path / "back.csv", "item_id", tokens[5])
    retire = write(tmp_path / "more_old.csv", "item_id", "new1")
    argv = ["--add", add, "--init=vectors", "--restore", restore, "--retire", retire]
    assert change(grown, tmp_path / "again", *argv) == 0
    after = catalogue(tmp_path / "again")
    assert after.tokens[-4:] == ["new1", "new2", "new3", "new4"] and after.titles[-2:] == [None, None]
    assert np.flatnonzero(after.retired).tolist() == [3, len(tokens)]
    saved = load_run(tmp_path / "again", None, CPU)
    assert np.array_equal(saved.model.item_embedding.weight[-2:].detach().numpy(), vectors)
    first, second = json.loads((tmp_path / "again" / "protocol.json").read_text())["growth"]
    assert second["parent"]["run"] == str(grown.resolve())
    assert (first["items"], second["items"]) == (len(tokens) + 2, len(tokens) + 4)
    assert (second["restored"]["items"], second["retired_items"]) == (1, 2)


def test_it_has_weights_only(grown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(grown)
    assert run_train("--resume", str(grown)) == 2
    err = capsys.readouterr().err
    assert "its items were changed, so it has weights only" in err and f"with --init {grown}" in err
    assert content(grown) == before


def test_the_last_checkpoint(run: Path, tmp_path: Path) -> None:
    token = catalogue(run).tokens[2]
    retire = write(tmp_path / "old.csv", "item_id", token)
    assert change(run, tmp_path / "new", "--retire", retire, "--checkpoint=last") == 0
    saved = load_run(tmp_path / "new", None, CPU)
    assert saved.checkpoint_path.name == "last.safetensors"
    old, new = load_file(run / "last.safetensors"), load_file(saved.checkpoint_path)
    assert {name for name in old if name.startswith("model/")} == set(new)
    assert all(torch.equal(new[name], old[name]) for name in new)


@pytest.mark.parametrize(
    ("argv", "rows", "message"),
    [
        ([], [], "give at least one of --add FILE, --retire FILE and --restore FILE"),
        (["--add"], ["item_id,title", "{1},x"], "f.csv: item '{1}' is already among the run's 40 items"),
        (["--add"], ["item_id,title", "a,x", "a,y"], "f.csv, row 2: item 'a' is in row 1 too"),
        (["--add"], ["item_id,title", "a,x", ",y"], "f.csv, row 2, column 'item_id': empty id"),
        (["--add"], ["item_id,title", "a,"], "f.csv: item 'a' has no title"),
        (["--add"], ["item_id,title", "a,qqq"], "f.csv: item 'a': no title is similar to 'qqq'"),
        (["--init=vectors", "--add"], ["item_id", "a"], "f.csv: no vectors, in a column 'vector'"),
        (["--init=vectors", "--add"], ["item_id,vector", 'a,"[1, 2]"'], "f.csv: vectors of width 2, but the"),
        (
            ["--init=vectors", "--add"],
            ["item_id,vector", f'a,"{[1e38] * 16}"'],
            "f.csv: item 'a': the vector has norm 4e+38, and the longest row of the model",
        ),
        (["--init=mean", "--add"], ["item_id,vector", 'a,"[1, 2]"'], "which --init mean does not use"),
        (["--init=means", "--add"], ["item_id", "a"], "init: 'means' is not one of titles, mean, vectors"),
        (
            ["--retire"],
            ["item_id", "{1}x"],
            "item '{1}x' is not among the run's 40 items; did you mean",
        ),
        (["--restore"], ["item_id", "{1}"], "f.csv: item '{1}' is not retired"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    rows: list[str],
    message: str,
) -> None:
    tokens, before = catalogue(run).tokens, content(run)
    file = write(tmp_path / "f.csv", *(row.replace("{1}", tokens[1]) for row in rows))
    assert change(run, tmp_path / "out", *argv, *[file] * bool(argv)) == 2
    err = capsys.readouterr().err
    assert message.replace("{1}", tokens[1]) in err and err.count("\n") == 1
    assert content(run) == before and [path.name for path in tmp_path.iterdir()] == ["f.csv"]


def test_some_item_is_left(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    retire = write(tmp_path / "all.csv", "item_id", *catalogue(run).tokens[1:])
    assert change(run, tmp_path / "out", "--retire", retire) == 2
    err = capsys.readouterr().err
    assert "all.csv: retires all items that are left" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    add = write(tmp_path / "new.csv", "item_id,vector", f'new,"{[1.0] * 16}"')
    assert change(run, tmp_path / "out", "--retire", retire, "--add", add, "--init=vectors") == 0


def test_retired_twice_or_added_while_retired(
    run: Path, grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "f.csv", "item_id", catalogue(run).tokens[3])
    assert change(grown, tmp_path / "out", "--retire", file) == 2
    assert "is already retired" in capsys.readouterr().err
    assert change(grown, tmp_path / "out", "--add", file) == 2
    assert "it is retired, and --restore brings it back" in capsys.readouterr().err


def test_nothing_is_overwritten(run: Path, grown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(grown)
    assert change(run, grown, "--retire", str(grown.parent / "old.csv")) == 2
    assert "exists, and runs are never overwritten" in capsys.readouterr().err
    assert content(grown) == before
    assert items.main([str(run), "--retire", str(grown.parent / "old.csv")]) == 2
    assert "--out: give the folder of the new run" in capsys.readouterr().err


def test_a_full_disk_leaves_no_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "protocol.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    retire = write(tmp_path / "old.csv", "item_id", catalogue(run).tokens[3])
    monkeypatch.setattr(os, "replace", full)
    assert change(run, tmp_path / "out", "--retire", retire) == 2
    assert "no space left on the disk" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [3, "44", None])
def test_a_damaged_protocol_is_named(grown: Path, capsys: pytest.CaptureFixture[str], value: object) -> None:
    edit_protocol(grown, lambda content: content["growth"][0].update(items=value))
    assert evaluate.main([str(grown)]) == 2
    assert f"protocol.json: damaged: growth has items {value!r}" in capsys.readouterr().err
    edit_protocol(grown, lambda content: content.update(growth=[3]))
    assert evaluate.main([str(grown)]) == 2
    assert "'growth' is not a list of objects" in capsys.readouterr().err


def test_retired_items_stay_retired_in_a_warm_start(grown: Path, tmp_path: Path) -> None:
    assert run_train(*options(tmp_path, "warm", "--train.epochs=1"), f"--init={grown}") == 0
    before, after = catalogue(grown), catalogue(tmp_path / "warm")
    assert {after.tokens[item] for item in np.flatnonzero(after.retired)} == {
        before.tokens[3],
        before.tokens[5],
    }
    record = json.loads((tmp_path / "warm" / "protocol.json").read_text())["init"]
    assert record["items"] == {"matched": 40, "new": 0, "dropped": 2}
    assert pq.read_table(tmp_path / "warm" / "items.parquet").schema.names == ["item_id", "title", "retired"]
