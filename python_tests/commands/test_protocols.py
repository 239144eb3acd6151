"""recgrela.protocols: one run under several orders of events."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from python_tests.support.runs import MODEL, PLAIN, TRAIN, run_train
from recgrela import items, protocols
from recgrela.runs.orders import share_trained
from recgrela.settings.data import ORDERS
from recgrela.settings.train import metric_names

USERS, ITEMS, EVENTS = 30, 25, 12
NOW = 978_300_032  # a multiple of 64, the step of float32
SETTINGS = ["--data.max_len=50", "--data.min_user_events=0", "--data.min_item_events=0"]


def events() -> list[tuple[str, str, int]]:
    """Events whose times have ties, and which are not in order of time. Every user has each item once."""
    random = np.random.default_rng(0)
    return [
        (f"u{user}", str(item), NOW + 40 * int(random.integers(0, 6)))
        for user in range(USERS)
        for item in random.permutation(ITEMS)[:EVENTS]
    ]


def write(path: Path, rows: list[tuple[str, str, int]]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("user_id", "item_id", "timestamp"), *rows])
    return str(path)


def targets(order: str) -> dict[str, tuple[str, set[str]]]:
    """The test target and the training events of each user."""
    keys = {
        "time": lambda row: row[2],
        "recbole": lambda row: np.float32(row[2]),
        "item": lambda row: (row[2], int(row[1])),
        "file": lambda row: 0,
    }
    found = {}
    for user in {user for user, _, _ in events()}:
        items = [item for _, item, _ in sorted((e for e in events() if e[0] == user), key=keys[order])]
        found[user] = items[-1], set(items[:-2])
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in the default order, of the data beside its folder."""
    folder = tmp_path_factory.mktemp("protocols")
    data = [f"--data.path={write(folder / 'events.csv', events())}", *SETTINGS]
    where = [f"--train.output={folder}", "--train.name=run", "--train.epochs=1"]
    assert run_train(*data, *MODEL, *PLAIN, *TRAIN, *where) == 0
    return folder / "run"


def test_every_order_has_its_targets(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert protocols.main([str(run), "--cutoffs=1,10", f"--json={file}", "--device=cpu"]) == 0
    out = capsys.readouterr().out
    found = {figures["order"]: figures for figures in json.loads(file.read_text())}
    assert list(found) == list(ORDERS)
    own, results = targets("time"), json.loads((run / "results.json").read_text())["test"]
    assert found["time"]["masked"]["HR@10"] == results["masked"]["HR@10"]
    for order, figures in found.items():
        learned = np.mean([target in own[user][1] for user, (target, _) in targets(order).items()])
        assert figures["trained_targets"] == pytest.approx(learned, abs=1e-12)
        assert figures["targets"] == USERS and set(figures["unmasked"]) == set(metric_names((1, 10)))
        for seen in ("unmasked", "masked"):
            for name, (low, high) in figures["intervals"][seen].items():
                assert low <= figures[seen][name] <= high
        assert (f"{100 * learned:.0f} % under {order}" in out) == (learned > 0)
    assert 0 < found["item"]["trained_targets"] < found["file"]["trained_targets"]
    bounds = found["file"]["intervals"]["masked"]["HR@10"]
    assert protocols.interval(found["file"]["masked"]["HR@10"], bounds) in out


def test_some_orders(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert protocols.main([str(run), "--orders=file,time", "--device=cpu"]) == 0
    out = capsys.readouterr().out
    assert out.index("as in the file") < out.index("by time, ties as in the file") and "recbole" not in out


def test_added_items_are_noted(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new, grown = tmp_path / "new.csv", tmp_path / "grown"
    new.write_text("item_id\nnew1\nnew2\n")
    assert items.main([str(run), f"--out={grown}", f"--add={new}", "--init=mean"]) == 0
    assert protocols.main([str(grown), "--orders=time", "--device=cpu"]) == 0
    assert "2 that were added after training" in capsys.readouterr().out


def test_bad_input(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*argv: str) -> str:
        assert protocols.main([str(run), "--device=cpu", *argv]) == 2
        return capsys.readouterr().err

    message = "--orders: 'tme' is not one of time, recbole, item, file; did you mean 'time'?"
    assert message in error("--orders=tme")
    other = write(tmp_path / "other.csv", events()[:-1])
    assert "not the data of this run" in error(f"--data.path={other}")
    assert "no such file" in error(f"--data.path={tmp_path / 'none.csv'}")
    assert f"--json: {tmp_path / 'none'}: no such folder" in error(f"--json={tmp_path / 'none' / 'x.json'}")
    assert "results.json is a file of the run" in error(f"--json={run / 'results.json'}")
    assert "--json: " in (text := error(f"--json={tmp_path}")) and "is a folder" in text


def test_equal_events_are_targets_of_the_run_first() -> None:
    """A user with two equal events, one of them held out, has a target that was not trained."""
    assert share_trained(np.array([5, 5, 7, 9]), np.array([4, 5, 7, 7])) == 2 / 4
    random = np.random.default_rng(0)
    targets, held_out = random.integers(0, 9, 40), random.integers(0, 9, 30)
    untrained = (Counter(targets.tolist()) & Counter(held_out.tolist())).total()
    assert share_trained(targets, held_out) == pytest.approx(1 - untrained / 40)


def test_files_that_have_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts: dict[str, list[tuple[str, str, int]]] = {"path": [], "valid_path": [], "test_path": []}
    for number, event in enumerate(events()):
        parts[list(parts)[max(0, number % EVENTS - EVENTS + 3)]].append(event)
    files = {name: write(tmp_path / f"{name}.csv", rows) for name, rows in parts.items()}
    data = [*(f"--data.{name}={file}" for name, file in files.items()), "--data.split=files", SETTINGS[0]]
    where = [f"--train.output={tmp_path}", "--train.name=run", "--train.epochs=1"]
    assert run_train(*data, *MODEL, *PLAIN, *TRAIN, *where) == 0
    moved = tmp_path / "moved"
    moved.mkdir()
    new = [f"--data.{name}={Path(file).rename(moved / Path(file).name)}" for name, file in files.items()]
    capsys.readouterr()
    assert protocols.main([str(tmp_path / "run"), "--device=cpu", *new]) == 0
    assert "file: as in the file" in capsys.readouterr().out


def test_a_run_in_the_order_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may have no times, so that no other order is possible."""
    rows = "user_id,item_id\n" + "".join(f"{user},{item}\n" for user, item, _ in events())
    (tmp_path / "events.csv").write_text(rows)
    data = [f"--data.path={tmp_path / 'events.csv'}", "--data.order=file", *SETTINGS]
    where = [f"--train.output={tmp_path}", "--train.name=run", "--train.epochs=1"]
    assert run_train(*data, *MODEL, *PLAIN, *TRAIN, *where) == 0
    capsys.readouterr()
    assert protocols.main([str(tmp_path / "run"), "--device=cpu"]) == 0
    assert "file: as in the file" in capsys.readouterr().out
    assert protocols.main([str(tmp_path / "run"), "--orders=time", "--device=cpu"]) == 2
    assert "no column 'timestamp'" in capsys.readouterr().err


def test_a_run_without_duplicates_has_no_order_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Duplicates are events of one time, which the order of the file does not read."""
    data = [f"--data.path={write(tmp_path / 'events.csv', events())}", *SETTINGS, "--data.duplicates=drop"]
    where = [f"--train.output={tmp_path}", "--train.name=run", "--train.epochs=1"]
    assert run_train(*data, *MODEL, *PLAIN, *TRAIN, *where) == 0
    assert protocols.main([str(tmp_path / "run"), "--device=cpu"]) == 0
    assert protocols.main([str(tmp_path / "run"), "--device=cpu", "--orders=file"]) == 2
    assert "data.duplicates: 'drop' compares times" in capsys.readouterr().err


def test_a_split_by_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has no order of the file, and says so."""
    data = [
        f"--data.path={write(tmp_path / 'events.csv', events())}",
        "--data.split=time",
        "--data.split_quantile=0.5",
        *SETTINGS,
    ]
    where = [f"--train.output={tmp_path}", "--train.name=run", "--train.epochs=1"]
    assert run_train(*data, *MODEL, *PLAIN, *TRAIN, *where) == 0
    capsys.readouterr()
    assert protocols.main([str(tmp_path / "run"), "--device=cpu"]) == 0
    out = capsys.readouterr().out
    assert "item: by time" in out and "file: as" not in out
    assert "a split by time has no order of the file" in out
