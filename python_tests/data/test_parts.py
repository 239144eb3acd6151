"""Events in parts, packed with bounded memory: equal to all events in one file."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recgrela.data import DataConfig, load, open_packed, parts, write_packed
from recgrela.data.__main__ import main
from recgrela.data.packed import read_header
from recgrela.settings.command_line import Parser
from recgrela.settings.fields import options_of
from recgrela.system.errors import DataError

HEADER = "user_id,item_id,timestamp\n"


def rows(seed: int, count: int = 3000, decimals: int = 0) -> list[str]:
    """Events of users and items of very different popularity, with many equal times."""
    random = np.random.default_rng(seed)
    users, items = random.geometric(0.01, count), random.geometric(0.02, count)
    times = np.round(random.integers(10**9, 10**9 + 500, count) + 0.25 * (decimals > 0), decimals)
    return [f"u{u}é,i{i},{t:.{decimals}f}" for u, i, t in zip(users, items, times, strict=True)]


def write(path: Path, lines: list[str]) -> str:
    path.write_text(HEADER + "\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("buckets", [3, 256])
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--data.min_user_events", "0", "--data.min_item_events", "0"],
        ["--data.max_user_events", "60", "--data.max_item_events", "50", "--data.min_user_events", "9"],
        ["--data.order", "recbole", "--data.min_user_events", "2"],
        ["--data.order", "item"],
    ],
)
def test_parts_equal_the_whole(tmp_path, monkeypatch, buckets, options):
    monkeypatch.setattr(parts, "BUCKETS", buckets)
    monkeypatch.setattr(parts, "_BINS", 50)
    lines = rows(0)
    whole = write(tmp_path / "whole.csv", lines)
    pieces = [lines[:700], lines[700:701], lines[701:2500], lines[2500:]]
    paths = [write(tmp_path / f"part{n}.csv", piece) for n, piece in enumerate(pieces)]
    assert main(["convert", whole, str(tmp_path / "one"), *options]) == 0
    assert main(["convert", *paths, str(tmp_path / "many"), *options]) == 0
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"one", "many"}
    one, many = open_packed(tmp_path / "one"), open_packed(tmp_path / "many")
    for name in ("items.bin", "users.bin", "blocks.bin"):
        assert (one.path / name).read_bytes() == (many.path / name).read_bytes(), name
    assert list(one.user_ids) == list(many.user_ids) and one.item_ids == many.item_ids
    assert one.dropped_users == many.dropped_users
    assert one.packed_sha256() == many.packed_sha256()
    source = {"source": f"{paths[0]} and 3 more"}
    assert many.description == one.description | source
    settings = dict(zip((key[7:] for key in options[::2]), options[1::2], strict=True))
    config = DataConfig(path=whole, **{k: v if k == "order" else int(v) for k, v in settings.items()})
    assert load(config).packed_sha256() == load(replace(config, path=str(many.path))).packed_sha256()
    assert many.user_row(many.user_ids[7]) == 7


def test_part_files_of_a_folder_equal_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "BUCKETS", 3)
    lines = rows(2)
    (tmp_path / "part").mkdir()
    for n in range(3):
        write(tmp_path / "part" / f"part-{n}.csv", lines[1000 * n : 1000 * (n + 1)])
    monkeypatch.setattr("recgrela.datasets.convert.load", None)  # would read all files at once
    assert main(["convert", str(tmp_path / "part"), str(tmp_path / "packed")]) == 0
    whole = load(DataConfig(path=write(tmp_path / "whole.csv", lines)))
    found = load(DataConfig(path=str(tmp_path / "packed")))
    assert found.packed_sha256() == whole.packed_sha256()
    assert found.sha256 == load(DataConfig(path=str(tmp_path / "part"))).sha256


def test_fractional_times(tmp_path):
    lines = rows(1, 1000, decimals=2)
    paths = [write(tmp_path / f"{n}.csv", lines[n * 500 :][:500]) for n in (0, 1)]
    options = ["--data.min_user_events", "2", "--data.min_item_events", "2"]
    assert main(["convert", *paths, str(tmp_path / "many"), *options]) == 0
    whole = DataConfig(path=write(tmp_path / "whole.csv", lines), min_user_events=2, min_item_events=2)
    assert open_packed(tmp_path / "many").packed_sha256() == load(whole).packed_sha256()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda p: [write(p / "a.csv", ["a,b,1"])] * 2,
            "none of the 2 events are left after filtering (min_user",
        ),
        (lambda p: ["synthetic", "synthetic"], "synthetic: is not a part of other data"),
        (lambda p: [str(p / "missing.csv")], "no such file or folder"),
        (lambda p: [str(p / "missing.csv")] * 2, "no such file or folder"),
    ],
)
def test_bad_parts_leave_nothing(tmp_path, capsys, make, expected):
    sources = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["convert", *sources, str(tmp_path / "out")]) == 2
    assert expected in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_exists_is_kept(tmp_path, capsys):
    write_packed(load(DataConfig(synthetic_users=60)), tmp_path / "out")
    header = read_header(tmp_path / "out")
    assert main(["convert", "synthetic", str(tmp_path / "out"), "--data.synthetic_users", "70"]) == 2
    assert "exists already; give another folder, or remove it" in capsys.readouterr().err
    assert read_header(tmp_path / "out") == header
    assert main(["convert", "synthetic", str(tmp_path / "no" / "out")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["convert", "synthetic", str(tmp_path / "new"), "--data.synthetic_users", "70"]) == 0
    assert "with padding ids; train with: --data.path" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    "given",
    [
        ["--data.split=time", "--data.split_quantile=0.8", "--data.order=item", "--data.min_user_events=2"],
        ["--data.split=files", "--data.valid_path=PATH", "--data.test_path=PATH", "--data.missing=NA"],
        ["--data.duplicates=drop", "--data.max_item_events=5000"],
    ],
)
def test_the_printed_options_read_what_was_converted(tmp_path, monkeypatch, capsys, given):
    monkeypatch.setattr(parts, "BUCKETS", 3)
    path = write(tmp_path / "whole.csv", rows(5))
    given = [word.replace("PATH", path) for word in given]
    assert main(["convert", path, path, str(tmp_path / "packed"), *given]) == 0
    words = capsys.readouterr().out.replace("\n", " ").partition("train with: ")[2]
    parser = Parser("")
    parser.add(options_of(DataConfig).values())
    options = parser.read(shlex.split(words.partition(" note:")[0]))
    data = load(DataConfig(**{key.removeprefix("data."): value for key, value in options.items()}))
    assert data.path == tmp_path / "packed"
    if "--data.split=files" in given:
        with pytest.raises(DataError, match=r"was packed with data\.split 'files', not 'leave_one_out'"):
            load(DataConfig(path=str(data.path)))
