"""python -m recgrela.recommend: sources of histories, formats of the output."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recgrela import Recommender, recommend
from recgrela.runs.items import write_items

Capture = pytest.CaptureFixture[str]


def run_command(run: Path, *argv: str) -> int:
    return recommend.main([str(run), "--device=cpu", *argv])


def test_for_a_user_with_the_history(finished_run: Path, recommender: Recommender, capsys: Capture) -> None:
    user = recommender.histories.users[7]
    assert run_command(finished_run, "--user", user, "--k", "3") == 0
    out = capsys.readouterr().out
    history = recommender.histories.of(7)
    assert f"history of {len(history)} items" in out and "excluding items of the history" in out
    assert recommender.catalogue.items.label(int(history[-1])) in out
    for item in recommender.recommend([user], k=3)["item"].to_pylist():
        assert item in out


def test_for_items_no_data_is_needed(copy: Path, recommender: Recommender, capsys: Capture) -> None:
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("path: synthetic", "path: /nowhere/ratings.csv"))
    tokens = recommender.item_ids
    assert run_command(copy, f"--items={tokens[3]},{tokens[5]}") == 0
    assert "history of 2 items" in capsys.readouterr().out
    assert run_command(copy, f"--items={tokens[3]}", "--seen", "--k=1000") == 0
    out = capsys.readouterr().out
    assert "including items of the history" in out and f"│ {len(tokens)} │" in " ".join(out.split())
    assert run_command(copy, "--all") == 2
    assert "/nowhere/ratings.csv" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_formats_hold_what_the_recommender_returns(
    finished_run: Path, recommender: Recommender, tmp_path: Path, capsys: Capture, kind: str
) -> None:
    expected = recommender.recommend(k=4).to_pylist()
    path = tmp_path / f"out.{kind}"
    path.write_text("an earlier file")
    assert run_command(finished_run, "--all", "--k=4", f"--format={kind}", f"--output={path}") == 0
    if kind == "parquet":
        rows = pq.read_table(path).to_pylist()
    elif kind == "jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        rows = list(csv.DictReader(path.open()))
        expected = [{key: str(value) for key, value in row.items()} for row in expected]
        for row, like in zip(rows, expected, strict=True):
            assert float(row.pop("score")) == pytest.approx(float(like.pop("score")), rel=1e-6)
    assert rows == expected
    assert list(tmp_path.iterdir()) == [path]
    if kind != "parquet":
        assert run_command(finished_run, "--all", "--k=4", f"--format={kind}") == 0
        assert capsys.readouterr().out == path.read_text()


def test_a_table_of_many_users(finished_run: Path, recommender: Recommender, capsys: Capture) -> None:
    assert run_command(finished_run, "--all", "--k=2") == 0
    captured = capsys.readouterr()
    heading, *rows = captured.out.splitlines()
    assert heading.split() == ["user", "rank", "score", "item", "title"]
    expected = recommender.recommend(k=2)
    assert [row.split()[0] for row in rows] == expected["user"].to_pylist()
    assert [row.split()[3] for row in rows] == expected["item"].to_pylist()
    assert "recommended by" in captured.err


def test_control_characters_are_shown_as_escapes(copy: Path, capsys: Capture) -> None:
    loaded = Recommender.load(copy, device="cpu")
    assert loaded.run is not None
    items = loaded.catalogue.items
    items.titles[3] = "red \x1b[31m\x9b"
    write_items(loaded.run.folder.items_path, items)
    for source in (f"--items={items.tokens[3]}", f"--items={items.tokens[4]}"):
        assert run_command(copy, source, "--k=100") == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out and "\x9b" not in out and r"red \x1b[31m\x9b" in out


def test_an_item_whose_id_has_a_comma_is_quoted(tmp_path: Path, capsys: Capture) -> None:
    items = ["a,b", 'say "c"', "d", "e", "f", "g"]
    rows = [(f"u{user}", items[(user + place) % 6], place) for user in range(12) for place in range(6)]
    table = pa.table(dict(zip(("user_id", "item_id", "timestamp"), zip(*rows, strict=True), strict=True)))
    small = {"model.hidden_size": 16, "model.num_heads": 2, "model.num_layers": 2, "train.max_steps": 1}
    fitted = Recommender.fit(table, small | {"train.output": str(tmp_path), "train.device": "cpu"})
    assert fitted.run is not None
    copy = fitted.run.folder.path
    assert run_command(copy, '--items="a,b", d,"say ""c"""', "--k=2") == 0
    assert "history of 3 items" in capsys.readouterr().out
    for given, message in (
        ("a,b", "--items: 'a,b' is one item with a comma; write it in double quotes"),
        ("a,d", "item 'a' is not among the model's"),
        ('"a,b', "--items: '\"a,b' is not ID,ID,... with quotes as in CSV: unexpected end of data"),
        ('""', "--items: no id is given"),
    ):
        assert run_command(copy, f"--items={given}") == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_whole_ids_in_a_table_that_is_not_a_terminal(
    finished_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A narrow terminal folds ids; nothing cuts them."""
    user, title = "user-" + "x" * 300, "a history with a [title]"
    loaded = Recommender.load(finished_run, device="cpu")
    path = tmp_path / "histories.jsonl"
    lines = [{"user": user, "items": loaded.item_ids[:2]}, {"user": title, "items": loaded.item_ids[3:4]}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert run_command(finished_run, f"--histories={path}", "--k=1") == 0
    out = capsys.readouterr().out
    assert user in out and title in out


def test_histories_on_stdin(
    finished_run: Path, recommender: Recommender, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    a, b = recommender.item_ids[4:6]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps([a, "unknown", b]).encode())))
    assert run_command(finished_run, "--histories=-", "--format=jsonl", "--k=2") == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["user"] for line in captured.out.splitlines()] == ["1", "1"]
    assert captured.err == "note: 1 events of items that the model does not know are skipped\n"


def test_histories_without_known_items_are_skipped(
    finished_run: Path, recommender: Recommender, tmp_path: Path, capsys: Capture
) -> None:
    """Line separators of Unicode within an id do not end a line; a BOM does not begin one."""
    user = "a\u2028b"
    lines = [[], ["unknown"], {"user": user, "items": recommender.item_ids[:1]}]
    path = tmp_path / "histories"
    path.write_text("\ufeff" + "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    assert run_command(finished_run, f"--histories={path}", "--format=jsonl", "--k=1") == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["user"] for line in captured.out.split("\n")[:-1]] == [user]
    assert "note: 2 histories without a known item are skipped" in captured.err


def test_lists_of_users_and_items(
    finished_run: Path, recommender: Recommender, tmp_path: Path, capsys: Capture
) -> None:
    users = recommender.histories.users[2:4]
    best = recommender.recommend(users, k=3)["item"].to_pylist()
    (tmp_path / "users").write_text(f"{users[0]}\n\n {users[1]} \n")
    (tmp_path / "deny").write_text(f"{best[0]}\n")
    (tmp_path / "allow").write_text("\n".join(best))
    lists = [f"--{name}={tmp_path / name}" for name in ("users", "deny", "allow")]
    assert run_command(finished_run, *lists, "--format=jsonl") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["user"] for row in rows} == set(users)
    assert best[0] not in {row["item"] for row in rows} <= set(best)


def test_todays_events(finished_run: Path, recommender: Recommender, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "today.csv"
    path.write_text(f"user_id,item_id,timestamp\nnewcomer,{recommender.item_ids[8]},1\n")
    assert run_command(finished_run, f"--events={path}", "--user=newcomer", "--k=2") == 0
    assert "history of 1 items" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[1]\n3", 'line 2: expected {"user": ID, "items": [ID, ...]}'),
        ('{"user": "a"}', "line 1: expected"),
        ('["\\ud800"]', "is not valid text"),
        ('{"user": "a", "items": [1.5]}', "line 1: the id 1.5 is neither text nor a whole number"),
        ('{"user": 1, "items": [1]}\n{"user": "1", "items": [2]}', "line 2: the user '1' occurs twice"),
        ("[" * 100_000, "line 1: "),
        (" \n", "no line has a history"),
    ],
)
def test_bad_histories_are_named_by_line(
    finished_run: Path, tmp_path: Path, capsys: Capture, text: str, message: str
) -> None:
    path = tmp_path / "histories"
    path.write_text(text)
    assert run_command(finished_run, f"--histories={path}") == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_bad_lists(finished_run: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, message in (
        ("none", "no such file"),
        ("empty", "no line has text; expected one id a line"),
        ("binary", "not UTF-8"),
        (".", "cannot be read"),
    ):
        assert run_command(finished_run, f"--users={tmp_path / name}") == 2
        assert message in capsys.readouterr().err
    assert run_command(finished_run, "--all", f"--output={tmp_path}") == 2
    assert "is a folder; give the name of a file" in capsys.readouterr().err
