"""Splits of files: read, packed, packed in parts, damaged, and shared by processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from python_tests.support.splits import ALL, RULES, evaluated, to_events
from recgrela.data import (
    DataConfig,
    EvalBatches,
    PackedWriter,
    TrainBatches,
    load,
    open_packed,
    write_packed,
)
from recgrela.data.__main__ import main
from recgrela.data.packed import read_header
from recgrela.data.prepare import prepare
from recgrela.data.split import SplitPart, Targets
from recgrela.system.errors import ConfigError, DataError


def rows_of(seed: int, count: int = 1500) -> list[str]:
    """Lines of events of users and items of very different popularity, with many equal times."""
    random = np.random.default_rng(seed)
    users, items = random.geometric(0.02, count), random.geometric(0.03, count)
    times = random.integers(10**9, 10**9 + 300, count) + items  # late items are cold
    return [f"u{u}é,i{i},{t}" for u, i, t in zip(users, items, times, strict=True)]


def write(path: Path, lines: Sequence[str]) -> str:
    path.write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    return str(path)


def options_of(split: str, rule: str, folder: Path) -> list[str]:
    if split == "time":
        return ["--data.split=time", f"--data.split_targets={rule}", "--data.min_user_events=3"]
    paths = [write(folder / f"{name}.csv", rows_of(n + 7, 300)) for n, name in enumerate(("valid", "test"))]
    return [
        "--data.split=files",
        f"--data.split_targets={rule}",
        f"--data.valid_path={paths[0]}",
        f"--data.test_path={paths[1]}",
    ]


def config_of(options: Sequence[str], path: str) -> DataConfig:
    values: dict[str, Any] = dict(option.removeprefix("--data.").split("=") for option in options)
    if "min_user_events" in values:
        values["min_user_events"] = int(values["min_user_events"])
    return DataConfig(path=path, **values)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("split", ["time", "files"])
def test_packed_and_in_parts(tmp_path, monkeypatch, split, rule):
    """Data in memory, packed, and packed in parts have the same split and batches."""
    monkeypatch.setattr("recgrela.data.parts.BUCKETS", 3)
    lines, options = rows_of(1), options_of(split, rule, tmp_path)
    whole = write(tmp_path / "whole.csv", lines)
    parts = [write(tmp_path / f"part{n}.csv", lines[n * 500 : (n + 1) * 500]) for n in range(3)]
    config = config_of(options, whole)
    assert main(["convert", whole, str(tmp_path / "one"), *options]) == 0
    assert main(["convert", *parts, str(tmp_path / "many"), *options]) == 0
    data, one, many = load(config), *(open_packed(tmp_path / name) for name in ("one", "many"))
    assert data.description == one.description
    source = {"source": f"{parts[0]} and 2 more"}
    assert many.description == one.description | source
    files = {name: read_header(tmp_path / name)["files"] for name in ("one", "many")}
    for name in ("items.bin", "users.bin", "blocks.bin", "split.bin", "valid.bin", "test.bin", "items.arrow"):
        assert files["one"][name] == files["many"][name], name
    assert one.dropped_users == many.dropped_users
    assert files["one"]["split.bin"]["rows"] == data.n_users + 1
    for found in (one, many):
        assert torch.equal(found.train_item_counts(), data.train_item_counts())
        for name in ("valid", "test"):
            assert evaluated(found, name) == evaluated(data, name)
            assert evaluated(found, name, max_users=9) == evaluated(data, name, max_users=9)
        for objective in ("last", "all"):
            batches = [TrainBatches(d, objective, 7, 50, 3, pieces=2, rank=1, world=2) for d in (data, found)]
            for a, b in zip(*(made.epoch(1) for made in batches), strict=True):
                assert torch.equal(a.items, b.items) and torch.equal(a.target, b.target)
    packed = replace(config, path=str(tmp_path / "many"), valid_path=None, test_path=None)
    assert load(packed).split is not None  # the folder has the events of all files
    other = "last" if rule == "first" else "first"
    with pytest.raises(DataError, match=f"was packed with data.split_targets '{rule}', not '{other}'"):
        load(replace(packed, split_targets=other))
    with pytest.raises(DataError, match=f"was packed with data.split '{split}', not 'leave_one_out'"):
        load(DataConfig(path=packed.path, **(ALL if split == "files" else {"min_user_events": 3})))


def test_files_that_are_read(tmp_path):
    """All events of all files are kept; a user's history continues from file to file."""
    paths = {
        "path": write(tmp_path / "train.csv", ["a,i,5", "a,j,9", "b,j,1", "b,i,2"]),
        "valid_path": write(tmp_path / "valid.csv", ["a,j,1", "c,i,3", "c,k,4", "c,j,5"]),
        "test_path": write(tmp_path / "test.csv", ["c,i,2", "b,j,9", "b,i,8", "d,i,1", "d,j,2", "e,i,2"]),
    }
    data = load(DataConfig(split="files", **paths))
    assert evaluated(data, "valid") == [("a", ["i", "j"], "j"), ("c", ["i", "k"], "j")]
    assert evaluated(data, "test") == [
        ("b", ["j", "i"], "i"),
        ("b", ["j", "i", "i"], "j"),
        ("c", ["i", "k", "j"], "i"),
        ("d", ["i"], "j"),
    ]
    facts = data.description["split"]
    assert facts["train"] == {"users": 2, "events": 4, "targets": 2}
    assert facts["valid"] == {
        "users": 2, "targets": 2, "cold_targets": 1, "users_without_history": 1, "events": 4,
    }  # fmt: skip
    assert facts["test"]["users_without_history"] == 2  # d and e
    assert data.description["filter"]["min_user_events"] == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"path": "synthetic"}, "data.split: files needs files; give data.path, data.valid_path and"),
        ({"valid_path": None}, "data.valid_path: missing; data.split files needs data.valid_path and"),
        ({"test_path": None}, "data.test_path: missing"),
        ({"valid_path": "nothing.csv"}, "nothing.csv: no such file or folder"),
        ({"test_path": "cold.csv"}, "test has 2 events but no target"),
    ],
)
def test_bad_files(tmp_path, monkeypatch, values, expected):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "good.csv", ["a,i,5", "a,j,9"])
    write(tmp_path / "cold.csv", ["a,new,5", "b,i,6"])
    paths = dict.fromkeys(("path", "valid_path", "test_path"), "good.csv")
    with pytest.raises((DataError, ConfigError)) as caught:
        load(DataConfig(split="files", **(paths | values)))
    assert expected in str(caught.value)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_processes_share_the_targets(tmp_path, split):
    data = load(config_of(options_of("time", "all", tmp_path), write(tmp_path / "x.csv", rows_of(1))))
    whole = list(EvalBatches(data, split, 20, 3))
    shares = [EvalBatches(data, split, 20, 3, rank=rank, world=2) for rank in range(2)]
    assert all(share.num_batches == len(whole) for share in shares)
    for batch, (step, share) in zip(whole, ((s, shares[s % 2]) for s in range(len(whole))), strict=True):
        found = list(share)[step // 2]
        assert found.step == batch.step == step
        assert torch.equal(found.items, batch.items) and torch.equal(found.target, batch.target)


def test_fewer_users_have_all_their_targets(tmp_path):
    data = load(config_of(options_of("time", "all", tmp_path), write(tmp_path / "x.csv", rows_of(1))))
    whole, some = evaluated(data, "test"), evaluated(data, "test", max_users=7)
    users = {user for user, _, _ in some}
    assert len(users) == 7 and some == [target for target in whole if target[0] in users]
    assert EvalBatches(data, "test", 5, 4, max_users=7).num_users == 7


def test_leave_one_out_is_counted():
    rows = [("a", "i", 1), ("b", "i", 2), ("b", "j", 3), *(("c", "i", 4 + n) for n in range(5))]
    data = prepare(to_events(rows), DataConfig(**ALL))
    held_out = {"users": 1, "targets": 1, "events": 1}
    train = {"users": 3, "events": 6, "targets": 3}
    assert data.split is None
    assert data.description["split"] == {
        "split": "leave_one_out", "train": train, "valid": held_out, "test": held_out,
    }  # fmt: skip


def test_damage_of_a_packed_split_is_found(tmp_path):
    config = config_of(options_of("time", "all", tmp_path), write(tmp_path / "x.csv", rows_of(1)))
    write_packed(load(config), tmp_path / "packed")
    for name in ("split.bin", "valid.bin", "test.bin"):
        path = tmp_path / "packed" / name
        content = path.read_bytes()
        for changed in (content[:-8], bytes([content[0] ^ 1]) + content[1:]):
            path.write_bytes(changed)
            with pytest.raises(DataError, match=rf"{name}: damaged"):
                open_packed(tmp_path / "packed")
        path.write_bytes(content)
    write_packed(open_packed(tmp_path / "packed"), tmp_path / "again")
    assert read_header(tmp_path / "again") == read_header(tmp_path / "packed")


def test_a_split_is_written_for_all_users_or_none(tmp_path, make_interactions):
    part = SplitPart(np.array([1]), *(Targets(np.array([n]), np.arange(1, n + 1)) for n in (0, 1)))
    for has_split, split in ((True, None), (False, part)):
        with PackedWriter(tmp_path / "packed", has_split) as writer, pytest.raises(ValueError, match="split"):
            writer.append(pa.array(["a"]), np.array([2]), np.array([1, 2], np.int32), split)
