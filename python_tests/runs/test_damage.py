"""Files of a run that are edited, damaged or lost, whatever command reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from python_tests.support.runs import run_train
from recgrela import recommend
from recgrela.runs import checkpoint
from recgrela.runs.folder import RunFolder
from recgrela.runs.items import Items, ids_sha256, read_items, write_items
from recgrela.runs.ranks import Ranks, read_ranks, write_ranks
from recgrela.runs.saved import load_run
from recgrela.runs.state import TrainState
from recgrela.system.errors import RunError
from recgrela.training.schedule import Schedule, check_schedules

CPU = torch.device("cpu")


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def interrupted(run: Path) -> Path:
    """The same run, killed before its final test."""
    folder = RunFolder.open(run)
    folder.metrics.rewrite(folder.metrics.read_epochs())
    for path in (folder.results_path, folder.ranks_path, folder.curves_path):
        path.unlink()
    return run


def error_of(run: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The one line with which recommending fails."""
    assert recommend.main([str(run), "--user=7", "--device=cpu", *more]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    "name",
    [
        "best.safetensors",
        "ranks.safetensors",
        "items.parquet",
        "protocol.json",
        "results.json",
        "metrics.jsonl",
    ],
)
def test_a_flipped_bit_is_found(run: Path, name: str) -> None:
    path, rng = run / name, np.random.default_rng(0)
    good = path.read_bytes()
    missed = []
    for place in (*rng.integers(0, len(good) - 1, 8).tolist(), len(good) // 2):
        damaged = bytearray(good)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        try:
            saved = load_run(run, None, CPU)
            saved.read_items()
            read_ranks(saved.folder.ranks_path, "test")
            saved.folder.metrics.read()
            missed.append(place)
        except RunError as error:
            assert str(run) in str(error)
    if name == "items.parquet":  # its statistics and padding are not read, and no content depends on them
        path.write_bytes(good)
        expected = load_run(run, None, CPU).read_items()
        for place in missed:
            damaged = bytearray(good)
            damaged[place] ^= 4
            path.write_bytes(damaged)
            assert load_run(run, None, CPU).read_items() == expected
    else:
        assert not missed


def test_permuted_items_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "items.parquet"
    table = pq.read_table(path)
    order = [0, *range(len(table) - 1, 0, -1)]
    pq.write_table(table.take(order), path)
    assert "items.parquet: damaged: its content does not have its checksum" in error_of(run, capsys)
    pq.write_table(table.take(order).replace_schema_metadata(None), path)
    assert "items.parquet: damaged: it has no checksum" in error_of(run, capsys)
    items = read_items_of(run, table)
    write_items(path, Items([items.tokens[at] for at in order], items.titles, items.retired))
    assert "items.parquet: not the items of this run, or in another order" in error_of(run, capsys)
    assert run_train("--resume", str(run)) == 2
    write_items(path, Items(items.tokens, items.titles[::-1], items.retired))  # titles may change
    assert recommend.main([str(run), "--user=7", "--device=cpu"]) == 0


def read_items_of(run: Path, table: object) -> Items:
    path = run / "original.parquet"
    pq.write_table(table, path)
    items = read_items(path, 41)
    path.unlink()
    return items


def test_hashes_of_items_do_not_depend_on_chunks(tmp_path: Path) -> None:
    tokens = ["[PAD]", "a", "", "é\U0001f600", "bc"]
    path = tmp_path / "items.parquet"
    write_items(path, Items(tokens, [None, "x", "", None, "y"], np.array([0, 1, 0, 0, 1], dtype=bool)))
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=2)
    assert read_items(path, 5, ids_sha256(tokens)).tokens == tokens
    assert ids_sha256(tokens) != ids_sha256(["[PAD]", "a", "é\U0001f600", "", "bc"])
    assert ids_sha256(["ab", "c"]) != ids_sha256(["a", "bc"])


@pytest.mark.parametrize("command", ["recommend", "resume"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("order: time", "order: recbole"),
        ("eval_max_len: null", "eval_max_len: 3"),
        ("dropout: 0.1", "dropout: 0.2"),
    ],
)
def test_edited_settings_are_refused(
    run: Path, old: str, new: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace(old, new))
    assert path.read_text() != text
    if command == "recommend":
        assert "but the run was started with" in error_of(run, capsys)
    else:
        assert run_train("--resume", str(run)) == 2
        assert "but the run was started with" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    run: Path, value: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = load_run(run, "best", CPU)
    with torch.no_grad():
        saved.model.item_embedding.weight[3, 1] = value
    with monkeypatch.context() as patch:
        patch.setattr("recgrela.runs.tensor_file.is_finite", lambda tensor: True)
        checkpoint.save(saved.checkpoint_path, saved.model, saved.state.as_dict())
    for path in (run / "results.json", run / "last.safetensors"):  # which do not know this checkpoint
        path.unlink()
    folder = RunFolder.open(run)
    folder.metrics.rewrite(folder.metrics.read_epochs())
    assert "model/item_embedding.weight has NaN or infinite values" in error_of(run, capsys)


def put_state(run: Path, **changes: object) -> None:
    """Writes last.safetensors with other counters."""
    path = run / "last.safetensors"
    saved = load_run(run, "last", CPU)
    optimizer = torch.optim.Adam(saved.model.parameters())
    state = checkpoint.load(path, saved.model, optimizer)
    checkpoint.save(path, saved.model, state | changes, optimizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 9, "total_steps": 25, "samples": 9, "targets": 9}, "but an epoch has 8 steps"),
        ({"total_steps": 17}, "total_steps 17, but an epoch has 8 steps"),
        ({"epoch": 3, "stale_epochs": 1, "total_steps": 16}, "total_steps 16, but an epoch has 8 steps"),
        ({"epoch": -2}, "its state has epoch -2"),
        ({"step": 10**18}, "its state has step 1000000000000000000"),
    ],
)
def test_a_step_that_the_run_does_not_have(
    run: Path, changes: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put_state(run, **changes)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert run_train("--resume", str(run), "--train.epochs=4") == 2
    err = capsys.readouterr().err
    assert "last.safetensors: damaged" in err and message in err and err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_lost_state_of_adam(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "last.safetensors"
    saved = load_run(run, "last", CPU)
    empty = torch.optim.Adam(saved.model.parameters())
    checkpoint.save(path, saved.model, saved.state.as_dict(), empty)
    assert run_train("--resume", str(run), "--train.epochs=3") == 2
    assert "last.safetensors: damaged: the optimizer's state is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (Schedule(4, 17, 2.0, 0.0), "does not follow"),
        (Schedule(4, 24, 3.0, 0.0), "within 16 steps"),
        (Schedule(2, 16, 2.0 - 1e-9, 0.0), "does not follow"),
    ],
)
def test_schedules_follow_each_other(after: Schedule, message: str) -> None:
    path = Path("protocol.json")
    check_schedules(path, [Schedule(2), Schedule(4, 16, 2.0, 0.0)], 8, 16)
    with pytest.raises(RunError, match=message):
        check_schedules(path, [Schedule(2), after], 8, 16)


@pytest.mark.parametrize("value", [True, -1, 1.5, 10**30, float("nan"), "3", None])
@pytest.mark.parametrize("name", ["protocol.json", "results.json"])
def test_numbers_of_json_files(run: Path, name: str, value: object) -> None:
    folder = RunFolder.open(run)
    content = folder.read_json(run / name)
    if name == "protocol.json":
        content["data"]["items"] = value
    else:
        content["test"]["unmasked"]["NDCG@10" if value != 1.5 else "HR@5"] = -1 if value is True else value
    folder.write_json(run / name, content)
    with pytest.raises(RunError, match=f"{name}: damaged"):
        load_run(run, None, CPU)


def test_json_files_edited_by_hand(run: Path) -> None:
    path = run / "results.json"
    content = json.loads(path.read_text())
    for key in ("format", "checksum"):
        partial = {name: value for name, value in content.items() if name != key}
        path.write_text(json.dumps(partial))
        with pytest.raises(RunError, match=r"results.json: (format None|damaged: its content)"):
            load_run(run, None, CPU)
    del content["format"], content["checksum"]
    path.write_text(json.dumps(content))
    load_run(run, None, CPU)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(2, dtype=np.int32), "wrong type, shape or value"),
        (np.ones(2, dtype=np.int64), "wrong type, shape or value"),
        (np.ones(3, dtype=np.int32), "the numbers of users and ranks differ"),
    ],
)
def test_ranks_out_of_range(tmp_path: Path, values: np.ndarray, message: str) -> None:
    path = tmp_path / "ranks.safetensors"
    ones = np.ones(2, dtype=np.int32)
    write_ranks(path, {"test": Ranks(np.arange(2), ones, values, ones)})
    with pytest.raises(RunError, match=message):
        read_ranks(path, "test")
    with pytest.raises(RunError, match="damaged: it has no 'valid/users'"):
        read_ranks(path, "valid")


def test_doubled_epochs_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = RunFolder.open(run).metrics
    first, second, _ = metrics.read()
    metrics.rewrite([first, first, second])
    with pytest.raises(RunError, match=r"epochs \[1, 1, 2\] are not in order"):
        metrics.read()
    lines = metrics.path.read_bytes().splitlines(keepends=True)
    metrics.path.write_bytes(lines[0] + lines[2][:-20])  # a killed process wrote a part of a line
    assert [record["epoch"] for record in metrics.read()] == [1]
    metrics.path.write_bytes(lines[0] + lines[2][:-20] + b"\n")
    with pytest.raises(RunError, match="line 2 is not JSON"):
        metrics.read()
    metrics.path.write_bytes(lines[0] + (json.dumps(second) + "\n").encode())
    with pytest.raises(RunError, match="1 lines have no checksum"):
        metrics.read()


ALWAYS = {"config.yaml", "protocol.json", "items.parquet"}


@pytest.mark.parametrize(
    ("state", "needed_to_read", "needed_to_resume"),
    [
        # Without last.safetensors, a finished run can be used; results and ranks are computed again.
        (
            "finished",
            {"best.safetensors", "metrics.jsonl", "ranks.safetensors", "results.json"},
            {"best.safetensors", "last.safetensors", "metrics.jsonl"},
        ),
        (
            "interrupted",
            {"best.safetensors", "metrics.jsonl"},
            {"best.safetensors", "last.safetensors", "metrics.jsonl"},
        ),
    ],
)
def test_a_lost_file_is_named(
    request: pytest.FixtureRequest,
    state: str,
    needed_to_read: set[str],
    needed_to_resume: set[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run: Path = request.getfixturevalue("run" if state == "finished" else state)
    for path in sorted(run.iterdir()):
        kept = path.read_bytes()
        path.unlink()
        commands: list[tuple[set[str], Callable[[], int]]] = [
            (needed_to_resume, lambda: run_train("--resume", str(run))),
            (needed_to_read, lambda: recommend.main([str(run), "--user=7", "--device=cpu"])),
        ]
        for needed, command in commands:
            if path.name in ALWAYS | needed:
                before = {file.name: file.read_bytes() for file in run.iterdir()}
                assert command() == 2
                err = capsys.readouterr().err
                assert path.name in err and err.count("\n") == 1
                assert {file.name: file.read_bytes() for file in run.iterdir()} == before
            elif command == commands[1][1]:
                assert command() == 0
        path.write_bytes(kept)
    assert run_train("--resume", str(run)) == 0
    assert {file.name for file in run.iterdir()} >= {"results.json", "ranks.safetensors", "curves.png"}


def test_the_state_of_an_epoch_has_no_numbers_out_of_range() -> None:
    """States that training makes are accepted, at every step."""
    state, path = TrainState(), Path("last.safetensors")
    for score in (0.5, 0.4, 0.5, 0.1, 0.1):
        for _ in range(3):
            state.step, state.total_steps = state.step + 1, state.total_steps + 1
            state.samples, state.targets, state.loss_sum = (
                state.samples + 4,
                state.targets + 9,
                state.loss_sum + 1,
            )
            if state.step == 2:
                state.add_loss_point()
            assert TrainState.from_dict(state.as_dict(), path) == state
        state.finish_epoch(score)
        assert TrainState.from_dict(json.loads(json.dumps(state.as_dict())), path) == state
