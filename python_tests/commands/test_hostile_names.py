"""Titles, ids and file names with characters that act on a terminal or are not UTF-8, end to end."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from python_tests.support.runs import MODEL, PLAIN, run_train
from recgrela import evaluate, recommend
from recgrela.runs.folder import RunFolder

TITLE = "[red]:bomb:[/red]\x1b[2J\u202e\u200b."
ESCAPED = "[red]:bomb:[/red]\\x1b[2J\\u202e\\u200b."


def test_a_run_of_hostile_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/data\xff\x1b[1m"))
    folder.mkdir()
    lines = [f"u{user}\x1b[3m\u2028\ti{item}\x9b\t{user + item}" for user in range(20) for item in range(8)]
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (folder / "x.inter").write_text("\n".join([header, *lines]) + "\n")
    titles = [f"i{item}\x9b\t{TITLE}" for item in range(8)]
    (folder / "x.item").write_text("\n".join(["item_id:token\ttitle:token", *titles]) + "\n")
    output = [
        f"--train.output={tmp_path}/\x1b[1m",
        "--train.name=run",
        f"--data.path={folder}",
        "--train.epochs=1",
    ]
    run = f"{tmp_path}/\x1b[1m/run"
    user = "u3\x1b[3m\u2028"
    assert run_train(*MODEL, *PLAIN, *output, "--data.max_len=8") == 0
    assert evaluate.main([run, "--device=cpu"]) == 0
    assert recommend.main([run, f"--user={user}", "--seen", "--k=3", "--device=cpu"]) == 0
    assert recommend.main([run, f"--user={user}{user}", "--device=cpu"]) == 2
    assert recommend.main([run, f"--users={user}"]) == 2
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert ESCAPED in captured.out and "data\\udcff\\x1b[1m" in captured.out
    assert not any(letter in shown for letter in "\x1b\x9b\u202e\u200b\u2028\udcff")
    assert recommend.main([run, f"--user={user}", "--seen", "--k=3", "--device=cpu", "--format=jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]
    assert {(row["user"], row["title"]) for row in rows} == {(user, " ".join(TITLE.split()))}
    assert recommend.main([run, f"--user={user}", "--seen", "--k=3", "--device=cpu", "--format=csv"]) == 0
    cells = list(csv.reader(capsys.readouterr().out.split("\n")))
    assert cells[1][0] == user and cells[1][2].endswith("\x9b")
    recorded = RunFolder.open(Path(run)).read_protocol()
    assert recorded["data"]["source"] == str(folder / "x.inter")
